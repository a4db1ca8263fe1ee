"""One state_dict holds everything; schedulers, hooks, copies and groups see one optimizer."""

import copy
import io
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.optim import lr_scheduler

from qat_vsam.errors import CheckpointError
from qat_vsam.optim import SAM, VSAM, LookSAM, VSAMPaper


def build(task, kind=VSAM, **options):
    return kind(task.weights, torch.optim.SGD, model=task.model, lr=0.05, momentum=0.9, nesterov=True, **options)


def test_a_run_resumed_from_a_file_is_bit_identical(any_task, member, base):
    whole, begun = any_task(), any_task()
    optimizer, first = member.build(whole, base), member.build(begun, base)
    for _ in range(18):
        whole.step(optimizer)
    for saved_at in (1, 13):
        while begun.turn < saved_at:
            begun.step(first)
        file = io.BytesIO()
        torch.save({"model": begun.model.state_dict(), "optimizer": first.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed = any_task(seed=5)
        resumed.x, resumed.y, resumed.turn = begun.x, begun.y, begun.turn
        second = member.build(resumed, base)
        resumed.model.load_state_dict(saved["model"])
        second.load_state_dict(saved["optimizer"])
        assert repr(second.statistics()) == repr(first.statistics())
        while resumed.turn < 18:
            resumed.step(second)
        assert all(torch.equal(a, b) for a, b in zip(whole.weights, resumed.weights, strict=True))
        ours, theirs = second.state_dict(), optimizer.state_dict()
        assert repr(ours["param_groups"]) == repr(theirs["param_groups"])
        assert repr(second.statistics()) == repr(optimizer.statistics())


@pytest.mark.parametrize(("kind", "more"), [(VSAM, {"reuse": 0.7}), (LookSAM, {})])
def test_a_psf_of_half_the_memory_is_saved_and_restored_as_it_is(problem, kind, more):
    whole, begun = problem(dtype=torch.float32), problem(dtype=torch.float32)
    resumed = problem(dtype=torch.float32)
    options = {"lr": 0.05, "momentum": 0.9, "psf_dtype": "bfloat16", **more}
    optimizer, first, second = (kind(t.weights, torch.optim.SGD, **options) for t in (whole, begun, resumed))
    for _ in range(7):
        whole.step(optimizer)
        begun.step(first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for w, loaded in zip(begun.weights, resumed.weights, strict=True):
        assert second.state[loaded]["psf"].dtype is torch.bfloat16
        assert torch.equal(second.state[loaded]["psf"], first.state[w]["psf"])
        assert second.state[loaded]["momentum_buffer"].dtype is torch.float32
        loaded.data.copy_(w.data)
    resumed.turn = begun.turn
    for _ in range(5):
        whole.step(optimizer)
        resumed.step(second)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, resumed.weights, strict=True))


def test_saving_changes_nothing(any_task, member):
    saving, quiet = any_task(), any_task()
    optimizer, reference = member.build(saving), member.build(quiet)
    for _ in range(18):
        saving.step(optimizer)
        optimizer.state_dict()
        quiet.step(reference)
    assert all(torch.equal(a, b) for a, b in zip(saving.weights, quiet.weights, strict=True))


def test_states_of_other_optimizers_are_refused_with_what_is_missing(problem):
    task = problem()
    optimizer = build(task)
    plain = torch.optim.SGD(task.weights, lr=0.1)
    with pytest.raises(CheckpointError, match="plain optimizer"):
        optimizer.load_state_dict(plain.state_dict())
    state = optimizer.state_dict()
    for key in list(extra_of(state)):
        broken = copy.deepcopy(state)
        del extra_of(broken)[key]
        with pytest.raises(CheckpointError, match=key):
            optimizer.load_state_dict(broken)
    for key in list(extra_of(state)["schedule"]):
        broken = copy.deepcopy(state)
        del extra_of(broken)["schedule"][key]
        with pytest.raises(CheckpointError, match=key):
            optimizer.load_state_dict(broken)
    with pytest.raises(CheckpointError, match="BudgetSchedule"):
        optimizer.load_state_dict(build(task, SAM).state_dict())
    grouped = SAM([{"params": [w]} for w in task.weights], torch.optim.SGD, lr=0.1).state_dict()
    grouped["param_groups"][0]["sharpness_aware"] = extra_of(state)
    with pytest.raises(CheckpointError, match="parameter group"):
        optimizer.load_state_dict(grouped)


@pytest.mark.parametrize("saved", [VSAM, VSAMPaper])
def test_the_state_of_vsam_and_that_of_vsam_paper_are_not_each_others(problem, saved):
    other = VSAMPaper if saved is VSAM else VSAM
    needed = {VSAM: {"reuse": 0.7}, VSAMPaper: {"warmup_steps": 2}}
    task, untouched = problem(), problem(seed=3)
    first, second = build(task, saved, **needed[saved]), build(untouched, other, **needed[other])
    for _ in range(8):
        task.step(first)
        untouched.step(second)
    before = repr(second.state_dict())
    rule = f"of {type(second.schedule).__name__}; load it into an optimizer of the class that saved it"
    with pytest.raises(CheckpointError, match=rf"^schedule: got .*{rule}$"):
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert repr(second.state_dict()) == before


def extra_of(state):
    return state["param_groups"][0]["sharpness_aware"]


def test_a_deep_copy_goes_on_by_itself_and_equally(any_task, member):
    task = any_task()
    optimizer = member.build(task)
    for _ in range(9):
        task.step(optimizer)
    twin, copied = copy.deepcopy((task, optimizer))
    assert copied.base.state is copied.state
    assert copied.base.param_groups is copied.param_groups
    before = task.copies()
    for _ in range(8):
        twin.step(copied)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))
    for _ in range(8):
        task.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, twin.weights, strict=True))


def test_a_group_added_later_is_stepped_saved_and_resumed(any_task, member):
    def begin():
        task = any_task()
        head = list(task.model[-1].parameters())
        body = SimpleNamespace(weights=[w for w in task.weights if not any(w is h for h in head)], model=task.model)
        return task, member.build(body), head

    task, optimizer, head = begin()
    for _ in range(4):
        task.step(optimizer)
    untouched = [w.detach().clone() for w in head]
    optimizer.add_param_group({"params": head, "lr": 0.01})
    assert optimizer.param_groups[1]["rho"] == optimizer.defaults["rho"]
    assert optimizer.base.param_groups is optimizer.param_groups
    for _ in range(8):
        task.step(optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(head, untouched, strict=True))
    again, resumed, new_head = begin()
    resumed.add_param_group({"params": new_head})
    again.model.load_state_dict(task.model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.turn = task.turn
    for _ in range(4):
        task.step(optimizer)
        again.step(resumed)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, again.weights, strict=True))


def test_groups_added_later_are_stepped_and_perturbed(problem):
    task = problem()
    first, *rest = task.weights
    optimizer = SAM([first], torch.optim.SGD, model=task.model, lr=0.05, rho=0.2)
    optimizer.add_param_group({"params": rest, "lr": 0.01})
    assert optimizer.param_groups[1]["rho"] == 0.2
    assert optimizer.base.param_groups is optimizer.param_groups
    before = task.copies()
    task.step(optimizer)
    assert all(not torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [first]})


def schedulers():
    def chained(optimizer):
        return lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(optimizer, total_iters=3), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        )

    def sequential(optimizer):
        parts = [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 10)]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[5])

    return {
        "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.95**e),
        "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda e: 0.95),
        "StepLR": lambda o: lr_scheduler.StepLR(o, 4),
        "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 9]),
        "ConstantLR": lr_scheduler.ConstantLR,
        "LinearLR": lr_scheduler.LinearLR,
        "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
        "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
        "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
        "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4),
        "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
        "ChainedScheduler": chained,
        "SequentialLR": sequential,
    }


def test_no_scheduler_of_torch_is_left_out():
    public = {
        name
        for name, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert public - {"LRScheduler"} == set(schedulers())


def trace_under(scheduler_name, optimizer, step):
    with warnings.catch_warnings():
        if scheduler_name == "SequentialLR":
            # torch's own, under any optimizer: it steps its parts with a deprecated argument.
            warnings.filterwarnings("ignore", message="The epoch parameter", category=UserWarning)
        scheduler, trace = schedulers()[scheduler_name](optimizer), []
        for _ in range(7):
            step()
            trace.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            scheduler.step(*([1.0] if scheduler_name == "ReduceLROnPlateau" else []))
    return trace


def test_each_learning_rate_scheduler_gives_the_trace_of_the_base_optimizer(any_task, member):
    for name in schedulers():
        task = any_task()
        optimizer, plain = member.build(task), torch.optim.SGD(task.weights, lr=0.05, momentum=0.9)
        trace = trace_under(name, optimizer, lambda task=task, optimizer=optimizer: task.step(optimizer))
        assert trace == trace_under(name, plain, lambda plain=plain: plain.step()), name
        assert len(set(trace)) > 1, name


def test_hooks_run_once_a_step(problem):
    task = problem()
    optimizer = build(task, SAM)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    task.step(optimizer)
    assert calls == ["before", "after"]


def test_zero_grad_reaches_all_parameters(problem):
    task = problem()
    optimizer = build(task)
    task.step(optimizer)
    assert all(w.grad is not None for w in task.weights)
    optimizer.zero_grad()
    assert all(w.grad is None for w in task.weights)
