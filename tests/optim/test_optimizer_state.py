"""One state_dict holds everything; schedulers, hooks, copies and groups see one optimizer."""

import copy
import io
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from qat_vsam.errors import CheckpointError
from qat_vsam.optim import SAM, VSAM, SplitSGD

MEMBERS = {
    "sam": (SAM, {}),
    "part": (VSAM, {"gradient_budget": 1.15}),
    "learning-rate": (VSAM, {"spend": "learning_rate"}),
    "variance": (VSAM, {"schedule": "variance", "warmup_steps": 20, "gains": (0.9, 0.9), "norm_tensors": 3}),
    "split": (SplitSGD, {}),
}
BASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}


def build(task, name="part", base="momentum"):
    member, options = MEMBERS[name]
    base_class, base_options = BASES[base]
    return member(task.weights, base_class, model=task.model, **options, **base_options)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_run_resumed_from_a_file_is_bit_identical(problem, name, base):
    whole, begun = problem(batch_norm=True), problem(batch_norm=True)
    optimizer, first = build(whole, name, base), build(begun, name, base)
    for _ in range(111):
        whole.step(optimizer)
    for _ in range(61):
        begun.step(first)
    file = io.BytesIO()
    torch.save({"model": begun.model.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = problem(seed=5, batch_norm=True)
    resumed.x, resumed.y, resumed.turn = begun.x, begun.y, begun.turn
    second = build(resumed, name, base)
    resumed.model.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    assert repr(second.statistics()) == repr(first.statistics())
    for _ in range(50):
        resumed.step(second)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, resumed.weights, strict=True))
    ours, theirs = second.state_dict(), optimizer.state_dict()
    assert repr(ours["param_groups"]) == repr(theirs["param_groups"])
    assert second.statistics() == pytest.approx(optimizer.statistics(), nan_ok=True, abs=0, rel=0)


def test_saving_changes_nothing(problem):
    for name in MEMBERS:
        saving, quiet = problem(), problem()
        optimizer, reference = build(saving, name), build(quiet, name)
        for _ in range(75):
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
        optimizer.load_state_dict(build(task, "variance").state_dict())
    grouped = SAM([{"params": [w]} for w in task.weights], torch.optim.SGD, lr=0.1).state_dict()
    grouped["param_groups"][0]["sharpness_aware"] = extra_of(state)
    with pytest.raises(CheckpointError, match="parameter group"):
        optimizer.load_state_dict(grouped)


def extra_of(state):
    return state["param_groups"][0]["sharpness_aware"]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_deep_copy_goes_on_by_itself_and_equally(problem, name):
    task = problem()
    optimizer = build(task, name)
    for _ in range(31):
        task.step(optimizer)
    twin, copied = copy.deepcopy((task, optimizer))
    assert copied.base.state is copied.state
    assert copied.base.param_groups is copied.param_groups
    before = task.copies()
    for _ in range(30):
        twin.step(copied)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))
    for _ in range(30):
        task.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, twin.weights, strict=True))


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


@pytest.mark.parametrize("name", schedulers())
def test_a_learning_rate_scheduler_gives_the_trace_of_the_base_optimizer(problem, name):
    traces = []
    for build_optimizer in (build, lambda task: torch.optim.SGD(task.weights, lr=0.05, momentum=0.9)):
        task = problem()
        optimizer = build_optimizer(task)
        with warnings.catch_warnings():
            if name == "SequentialLR":
                # torch's own, under any optimizer: it steps its parts with a deprecated argument.
                warnings.filterwarnings("ignore", message="The epoch parameter", category=UserWarning)
            scheduler, trace = schedulers()[name](optimizer), []
            for _ in range(15):
                task.step(optimizer)
                trace.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
                scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        traces.append(trace)
    assert traces[0] == traces[1]


def test_hooks_run_once_a_step(problem):
    task = problem()
    optimizer = build(task, "sam")
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
