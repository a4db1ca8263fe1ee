"""What a step promises: its cost, its loss, what stands still, and that nothing is left behind."""

import logging
import math

import pytest
import torch
from torch import nn

from qat_vsam.errors import ConfigError, InputError, NonFiniteError
from qat_vsam.optim import SAM, VSAM, SplitSGD

BATCH = 12
MEMBERS = {
    "sam": (SAM, {}),
    "part": (VSAM, {"gradient_budget": 1.25}),
    "large-part": (VSAM, {"share": 0.75, "gradient_budget": 1.5}),
    "ascend-part": (VSAM, {"method": "ascend_part", "gradient_budget": 1.25}),
    "interval": (VSAM, {"method": "interval"}),
    "variance": (VSAM, {"schedule": "variance", "warmup_steps": 5}),
    "split": (SplitSGD, {}),
}
EVERY_MEMBER = pytest.mark.parametrize("name", MEMBERS)
# One that takes a second gradient at each step, of each method.
AT_EACH_STEP = pytest.mark.parametrize(
    ("member", "options"),
    [
        (SAM, {}),
        (VSAM, {"gradient_budget": 1.5}),
        (VSAM, {"share": 0.75, "gradient_budget": 1.75}),
        (VSAM, {"method": "ascend_part", "gradient_budget": 1.25}),
    ],
    ids=["sam", "part", "large-part", "ascend-part"],
)


def build(task, name, **more):
    member, options = MEMBERS[name]
    options = {"lr": 0.05, "momentum": 0.9, **options, **more}
    return member(task.weights, torch.optim.SGD, model=task.model, **options)


@EVERY_MEMBER
@pytest.mark.parametrize("batch_size", [BATCH, None])
def test_the_declared_cost_is_what_the_network_does(problem, name, batch_size):
    task = problem()
    optimizer = build(task, name)
    for _ in range(60):
        task.step(optimizer, batch_size)
    assert optimizer.gradient_evaluations == pytest.approx(task.passes)
    assert optimizer.forwards == task.forwards
    assert optimizer.steps == 60


@EVERY_MEMBER
def test_batch_norm_moves_once_a_step(problem, name):
    task = problem(batch_norm=True)
    optimizer = build(task, name)
    for step in range(1, 21):
        task.step(optimizer)
        assert int(task.model[1].num_batches_tracked) == step
    assert task.model[1].track_running_stats


@pytest.mark.parametrize(("share", "rows"), [(0.25, slice(3, None)), (0.75, slice(0, 9))])
def test_running_statistics_come_from_the_larger_part_at_w(problem, share, rows):
    task = problem(batch_norm=True)
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, share=share, gradient_budget=1 + share, lr=0.1)
    expected = 0.1 * task.model[0](task.x[0][rows]).mean(0).detach()
    task.step(optimizer)
    torch.testing.assert_close(task.model[1].running_mean, expected)


@EVERY_MEMBER
def test_the_loss_returned_is_that_of_the_whole_batch_before_the_step(problem, name):
    task = problem()
    optimizer = build(task, name)
    for _ in range(8):
        expected = task.loss().detach()
        if name == "ascend-part":
            expected = task.loss(slice(0, BATCH // 4)).detach()
        loss = task.step(optimizer)
        torch.testing.assert_close(loss, expected)
        assert not loss.requires_grad


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", [name for name in MEMBERS if name != "split"])
def test_a_radius_of_zero_is_the_base_optimizer_bit_for_bit(problem, name, base):
    ours, plain = problem(), problem()
    member, options = MEMBERS[name]
    optimizer = member(ours.weights, base, model=ours.model, rho=0.0, lr=0.05, weight_decay=0.01, **options)
    reference = base(plain.weights, lr=0.05, weight_decay=0.01)
    for _ in range(30):
        ours.step(optimizer)
        plain.step(reference)
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, plain.weights, strict=True))
    assert optimizer.gradient_evaluations == 30


def test_a_budget_of_one_is_the_base_optimizer_bit_for_bit(problem):
    ours, plain = problem(), problem()
    optimizer = VSAM(ours.weights, torch.optim.SGD, model=ours.model, gradient_budget=1.0, lr=0.05, momentum=0.9)
    reference = torch.optim.SGD(plain.weights, lr=0.05, momentum=0.9)
    for _ in range(20):
        ours.step(optimizer)
        plain.step(reference)
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, plain.weights, strict=True))


def test_a_budget_of_two_on_the_whole_batch_is_sam(problem):
    ours, reference = problem(), problem()
    options = {"lr": 0.05, "momentum": 0.9, "rho": 0.1}
    optimizer = VSAM(ours.weights, torch.optim.SGD, model=ours.model, method="interval", gradient_budget=2.0, **options)
    sam = SAM(reference.weights, torch.optim.SGD, model=reference.model, **options)
    for _ in range(20):
        ours.step(optimizer)
        reference.step(sam)
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, reference.weights, strict=True))


def test_without_batch_norm_the_split_control_is_the_base_optimizer(problem):
    ours, plain = problem(), problem()
    optimizer = SplitSGD(ours.weights, torch.optim.SGD, model=ours.model, lr=0.05, momentum=0.9)
    reference = torch.optim.SGD(plain.weights, lr=0.05, momentum=0.9)
    for _ in range(30):
        ours.step(optimizer)
        plain.step(reference)
    for a, b in zip(ours.weights, plain.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@AT_EACH_STEP
def test_at_a_learning_rate_of_zero_the_weights_come_back_bit_for_bit(problem, member, options):
    task = problem(dtype=torch.float32)
    before = task.copies()
    optimizer = member(task.weights, torch.optim.SGD, model=task.model, lr=0.0, rho=0.3, **options)
    for _ in range(5):
        task.step(optimizer)
        assert optimizer.statistics()["share"] > 0
    assert all(torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))


@AT_EACH_STEP
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("after_backward", [False, True])
def test_a_closure_that_raises_leaves_weights_momentum_and_flags(
    problem, member, options, error, failing, after_backward
):
    task, undisturbed = problem(batch_norm=True), problem(batch_norm=True)
    task.model.register_module("watcher", Watcher())
    options = {"lr": 0.05, "momentum": 0.9, **options}
    optimizer = member(task.weights, torch.optim.SGD, model=task.model, **options)
    twin = member(undisturbed.weights, torch.optim.SGD, model=undisturbed.model, **options)
    for _ in range(3):
        task.step(optimizer)
        undisturbed.step(twin)
    before, momentum = task.copies(), [optimizer.state[w]["momentum_buffer"].clone() for w in task.weights]
    calls = 0

    def closure(rows=slice(None)):
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = task.loss(rows)
        if calls == failing and not after_backward:
            raise error
        loss.backward()
        if calls == failing:
            raise error
        return loss

    with pytest.raises(error):
        optimizer.step(closure, batch_size=BATCH)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))
    for w, buffer in zip(task.weights, momentum, strict=True):
        assert torch.equal(optimizer.state[w]["momentum_buffer"], buffer)
    assert task.model[1].track_running_stats
    assert task.model.watcher.updates_state
    assert optimizer.steps == 3
    for _ in range(3):
        task.step(optimizer)
        undisturbed.step(twin)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, undisturbed.weights, strict=True))


class Watcher(nn.Module):
    """Counts forward passes unless told to stand still."""

    def __init__(self):
        super().__init__()
        self.updates_state = True
        self.count = 0

    def forward(self, x):
        self.count += self.updates_state
        return x


@EVERY_MEMBER
def test_observers_see_one_pass_a_step(problem, name):
    task = problem()
    watcher = Watcher()
    task.model.append(watcher)
    optimizer = build(task, name)
    for _ in range(12):
        task.step(optimizer)
    assert watcher.count == 12


def test_an_observer_that_was_switched_off_stays_off(problem):
    task = problem()
    watcher = Watcher()
    watcher.updates_state = False
    task.model.append(watcher)
    optimizer = build(task, "sam")
    task.step(optimizer)
    assert watcher.count == 0
    assert watcher.updates_state is False


@pytest.mark.parametrize(("dropout", "same"), [("keep", True), ("redraw", False)])
def test_dropout_masks_are_kept_or_redrawn(problem, dropout, same):
    task = problem(dropout=0.5)
    masks = []
    task.model[2].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    optimizer = build(task, "sam", dropout=dropout)
    for _ in range(2):
        task.step(optimizer)
    assert torch.equal(masks[0], masks[1]) is same
    assert not torch.equal(masks[0], masks[2])


def test_a_kept_mask_costs_no_random_numbers(problem):
    task, plain = problem(dropout=0.5), problem(dropout=0.5)
    torch.manual_seed(5)
    task.step(build(task, "sam"))
    after_sam = torch.rand(1)
    torch.manual_seed(5)
    plain.step(torch.optim.SGD(plain.weights, lr=0.1))
    assert torch.equal(after_sam, torch.rand(1))


def test_random_numbers_after_a_step_do_not_depend_on_what_its_second_pass_drew(problem):
    task = problem()
    optimizer = build(task, "sam")
    drawn = [3, 1]

    def closure():
        optimizer.zero_grad()
        loss = task.loss() + 0 * torch.rand(drawn.pop(0)).sum()
        loss.backward()
        return loss

    torch.manual_seed(5)
    optimizer.step(closure)
    after_step = torch.rand(1)
    torch.manual_seed(5)
    torch.rand(3)
    assert torch.equal(after_step, torch.rand(1))


def test_rows_are_passed_only_with_a_batch_size(problem):
    task = problem()
    optimizer = build(task, "part")

    def closure():
        return task.closure(optimizer)()

    for _ in range(8):
        optimizer.step(closure)
    assert optimizer.gradient_evaluations / optimizer.steps == 1.25
    assert optimizer.forwards == 8 + 2
    optimizer = build(task, "part", gradient_budget=1.5)
    with pytest.raises(InputError, match=r"rows=slice\(None\)"):
        optimizer.step(closure, batch_size=BATCH)


@pytest.mark.parametrize(("batch_size", "share"), [(3, 1.0), (4, 0.5), (5, 0.4), (9, 4 / 9), (1, 1.0)])
def test_the_true_share_enters_the_ledger(problem, batch_size, share):
    task = problem()
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, gradient_budget=1.5, lr=0.1)

    def closure(rows=slice(None)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(task.model(task.x[0][:batch_size][rows]), task.y[0][:batch_size][rows])
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure, batch_size=batch_size)
    assert optimizer.statistics()["share"] == pytest.approx(share)


def test_a_closure_may_weigh_its_rows(problem):
    """Masked rows: the mean over the rest, so that the parts count by what is left in them."""
    ours, plain = problem(), problem()
    keep = torch.tensor([1.0] * 3 + [0.0] * 5 + [1.0] * 4, dtype=torch.float64)
    optimizer = SplitSGD(ours.weights, torch.optim.SGD, model=ours.model, share=0.5, lr=0.1)
    reference = torch.optim.SGD(plain.weights, lr=0.1)

    def closure_of(task, optimizer, weighted):
        def closure(rows=slice(None)):
            optimizer.zero_grad()
            each = nn.functional.cross_entropy(task.model(task.x[0][rows]), task.y[0][rows], reduction="none")
            weight = keep[rows].sum()
            loss = (each * keep[rows]).sum() / weight
            loss.backward()
            return (loss, weight) if weighted else loss

        return closure

    loss = optimizer.step(closure_of(ours, optimizer, True), batch_size=BATCH)
    expected = reference.step(closure_of(plain, reference, False))
    torch.testing.assert_close(loss, expected.detach())
    for a, b in zip(ours.weights, plain.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@EVERY_MEMBER
@pytest.mark.parametrize("bad_call", [1, 2])
def test_a_gradient_that_is_not_finite_raises_before_it_touches_anything(problem, name, bad_call):
    task = problem()
    optimizer = build(task, name)
    for _ in range(3):
        task.step(optimizer)
    while not next_step_pays(optimizer):
        task.step(optimizer)
    before = task.copies()
    state = tensors_of(optimizer)
    calls = 0

    def closure(rows=slice(None)):
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = task.loss(rows) * (math.inf if calls == bad_call else 1.0)
        loss.backward()
        return loss

    with pytest.raises(NonFiniteError, match=r"^gradient: got NaN"):
        optimizer.step(closure, batch_size=BATCH)
    assert calls >= bad_call
    assert all(torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(optimizer), state, strict=True))
    task.step(optimizer)


def next_step_pays(optimizer):
    return optimizer.schedule.pays(optimizer.schedule.share, 0.05)


def tensors_of(optimizer):
    return [t.clone() for state in optimizer.state.values() for t in state.values() if t is not None]


def test_skipping_leaves_the_step_out_and_counts_it(problem):
    task = problem()
    optimizer = build(task, "part", nonfinite="skip")
    for _ in range(5):
        task.step(optimizer)
    before, momentum = task.copies(), tensors_of(optimizer)
    task.x[task.turn % 8][0] = math.nan
    task.step(optimizer)
    assert (optimizer.steps, optimizer.skipped) == (6, 1)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(optimizer), momentum, strict=True))
    task.step(optimizer)
    assert all(torch.isfinite(w).all() for w in task.weights)


def test_a_late_look_raises_within_its_period_and_before_a_state_is_saved(problem):
    task = problem()
    optimizer = build(task, "sam", check_every=4)
    task.x[1] = math.nan
    task.step(optimizer)
    task.step(optimizer)
    with pytest.raises(NonFiniteError):
        optimizer.state_dict()
    again = problem()
    optimizer = build(again, "sam", check_every=4)
    again.x[1] = math.nan
    for _ in range(3):
        again.step(optimizer)
    with pytest.raises(NonFiniteError):
        again.step(optimizer)


def test_frozen_tied_and_unused_parameters(problem):
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    frozen, unused = nn.Linear(4, 4), nn.Linear(4, 4)
    frozen.requires_grad_(False)
    model = nn.ModuleList([shared, frozen, unused])
    late = False
    x = torch.randn(8, 4)
    optimizer = VSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, momentum=0.9, weight_decay=0.1)

    def closure(rows=slice(None)):
        optimizer.zero_grad()
        hidden = shared(torch.tanh(frozen(shared(x[rows]))))
        loss = (hidden if not late else unused(hidden)).square().mean()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in (*frozen.parameters(), *unused.parameters())]
    for _ in range(6):
        optimizer.step(closure, batch_size=8)
    assert all(torch.equal(a, b) for a, b in zip((*frozen.parameters(), *unused.parameters()), before, strict=True))
    late = True
    for _ in range(6):
        optimizer.step(closure, batch_size=8)
    assert not torch.equal(unused.weight, before[2])
    late = False
    for _ in range(6):
        optimizer.step(closure, batch_size=8)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_parameter_seen_by_one_part_only_counts_as_zero_in_the_other(problem):
    a, b = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    optimizer = SplitSGD([a, b], torch.optim.SGD, share=0.25, lr=1.0)

    def closure(rows=slice(None)):
        optimizer.zero_grad()
        loss = (a if rows.start == 0 else b).sum()
        loss.backward()
        return loss

    optimizer.step(closure, batch_size=8)
    assert (a.item(), b.item()) == (0.75, 0.25)


def test_gradients_of_one_call_are_not_written_into_by_the_next(problem):
    """Not even where the closure zeroes in place, or does not zero at all."""
    results = []
    for set_to_none in (True, False, None):
        task = problem()
        optimizer = build(task, "part")

        def closure(rows=slice(None), optimizer=optimizer, task=task, set_to_none=set_to_none):
            if set_to_none is not None:
                optimizer.zero_grad(set_to_none=set_to_none)
            loss = task.loss(rows)
            loss.backward()
            return loss

        for _ in range(10):
            optimizer.step(closure, batch_size=BATCH)
        results.append(task.copies())
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_a_step_without_closure_says_what_to_do(problem):
    optimizer = build(problem(), "sam")
    with pytest.raises(InputError, match=r"step\(\): got no closure; .*pass step\(closure\)") as told:
        optimizer.step()
    for trainer in ("Lightning", "accelerate", "accelerator.backward", "Hugging Face Trainer", "training_step"):
        assert trainer in str(told.value)
    assert "\n" not in str(told.value)


def test_statistics_of_batch_norm_survive_a_second_pass_that_overflows(problem):
    task = problem(batch_norm=True)
    optimizer = build(task, "sam", nonfinite="skip")
    passes = 0

    def closure():
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(task.model(task.x[0] * (math.inf if passes == 2 else 1.0)), task.y[0])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (passes, optimizer.skipped, int(task.model[1].num_batches_tracked)) == (2, 1, 1)
    assert torch.isfinite(task.model[1].running_mean).all()
    assert torch.isfinite(task.model[1].running_var).all()


def test_every_member_trains_under_bf16_autocast_with_weights_and_norms_in_float32(any_task, member):
    task = any_task(dtype=torch.float32)
    optimizer = member.build(task)
    inner, losses = task.closure(optimizer), []

    def closure(*args, **options):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return inner(*args, **options)

    for _ in range(24):
        losses.append(float(optimizer.step(closure, batch_size=BATCH)))
        task.turn += 1
    assert sum(losses[16:]) < sum(losses[:8])
    assert {w.dtype for w in task.weights} == {torch.float32}


def test_every_member_trains_bf16_parameters_with_norms_in_float32(any_task, member):
    task = any_task(dtype=torch.bfloat16)
    optimizer = member.build(task)
    norms, losses = [], []
    optimizer.register_gradient_hook(
        lambda o: norms.append(math.sqrt(sum(float(w.grad.double().square().sum()) for w in task.weights)))
    )
    for _ in range(24):
        losses.append(float(task.step(optimizer)))
        assert optimizer.statistics()["gradient_norm"] == pytest.approx(norms[-1], rel=1e-5)
    assert sum(losses[16:]) < sum(losses[:8])
    assert {w.dtype for w in task.weights} == {torch.bfloat16}


def test_wrong_arguments_are_refused_by_name(problem):
    task = problem()
    optimizer = build(task, "part")
    with pytest.raises(InputError, match=r"^batch_size: got 0"):
        task.step(optimizer, batch_size=0)
    with pytest.raises(InputError, match=r"^closure: got None returned"):
        optimizer.step(lambda: None)
    embedding = nn.Embedding(3, 2, sparse=True)
    sparse = SAM(embedding.parameters(), torch.optim.SGD, lr=0.1)

    def sparse_closure():
        loss = embedding(torch.tensor([1])).sum()
        loss.backward()
        return loss

    with pytest.raises(InputError, match=r"^gradient: got a sparse"):
        sparse.step(sparse_closure)
    with pytest.raises(InputError, match=r"^base_optimizer: got LBFGS"):
        SAM(task.weights, torch.optim.LBFGS)
    for key, options in {
        "method": {"method": "prat"},
        "schedule": {"schedule": "budge"},
        "warmup_steps": {"schedule": "variance"},
        "interval": {"interval": 0},
        "reuse": {"reuse": 1.5},
        "nonfinite": {"nonfinite": "stpo"},
        "check_every": {"check_every": 0},
        "dropout": {"dropout": "keeep"},
    }.items():
        with pytest.raises(ConfigError, match=f"^{key}: got"):
            build(task, "part", **options)


def test_without_a_model_one_line_is_logged_once(problem, caplog):
    task = problem()
    with caplog.at_level(logging.INFO, "qat_vsam.optim"):
        optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1)
        for _ in range(3):
            task.step(optimizer)
    assert [record.message for record in caplog.records] == [
        "SAM without model=: nothing is held still in second passes"
    ]


@pytest.mark.parametrize(("more", "kept"), [({}, {"momentum_buffer"}), ({"reuse": 0.7}, {"momentum_buffer", "psf"})])
def test_nothing_is_kept_without_reuse_and_one_tensor_per_parameter_with_it(problem, more, kept):
    task = problem()
    optimizer = build(task, "part", **more)
    task.step(optimizer)
    task.step(optimizer)
    size = sum(len(state) for state in optimizer.state.values())
    for _ in range(200):
        task.step(optimizer)
    assert all(set(state) == kept for state in optimizer.state.values())
    assert sum(len(state) for state in optimizer.state.values()) == size
    assert not any(vars(w) for w in task.weights)
