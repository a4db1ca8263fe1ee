"""What every member promises on every base optimizer: one table, in which a new member appears by itself."""

import copy
import math

import pytest
import torch
from problem import BATCH, tensors_of
from torch import nn

from qat_vsam.optim import (
    AESAM,
    ESAM,
    FAMILY,
    FSAM,
    LESAM,
    SAM,
    VSAM,
    LateSAM,
    LookSAM,
    PeriodicSAM,
    RampSAM,
    RandomCountSAM,
    RandomSAM,
    VSAMPaper,
)

# Tensors of the size of a parameter that are kept between steps beyond the base optimizer's.
COPIES = {
    "sam": 0,
    "vsam": 1,
    "vsam_paper": 1,
    "asam": 0,
    "looksam": 1,
    "ae_sam": 0,
    "ae_looksam": 1,
    "random_sam": 0,
    "esam": 0,
    "fsam": 1,
    "msam": 0,
    "s2_sam": 1,
    "sam_on": 0,
    "le_sam": 0,
    "saq": 0,
    "split_sgd": 0,
    "periodic_sam": 0,
    "random_count_sam": 1,
    "ramp_sam": 1,
    "late_sam": 0,
}


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_table_is_complete():
    assert set(COPIES) == set(FAMILY)


def test_a_radius_of_zero_is_the_base_optimizer_bit_for_bit(any_task, member, base):
    if member.name == "split_sgd":
        pytest.skip("has no radius, and a mean of two parts rounds")
    ours, plain = any_task(), any_task()
    optimizer = member.build(ours, base, rho=0.0)
    reference = member.build_base(plain, base)
    for _ in range(12):
        ours.step(optimizer)
        plain.step(reference)
    assert equal(ours.model.state_dict().values(), plain.model.state_dict().values())
    assert optimizer.gradient_evaluations == 12


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RandomSAM, {"probability": 1.0}),
        (PeriodicSAM, {"interval": 1}),
        (LookSAM, {"interval": 1}),
        (LateSAM, {"total_steps": 9, "begin": 0.0}),
        (RampSAM, {"total_steps": 9, "first": 1.0, "last": 1.0}),
        (RandomCountSAM, {"total_steps": 9, "count": 9}),
        (AESAM, {"total_steps": 9, "first": -1e9, "last": -1e9}),
        (VSAM, {"method": "interval", "gradient_budget": 2.0, "largest_rise": None}),
        (VSAMPaper, {"warmup_steps": 9}),
        (FSAM, {"sigma": 0.0}),
        (LESAM, {"sigma": 1e9}),
        (ESAM, {"beta": 1.0, "share": 1.0}),
    ],
)
def test_at_a_rate_of_one_a_member_is_sam(problem, kind, options):
    ours, reference = problem(), problem()
    optimizer = kind(ours.weights, torch.optim.SGD, model=ours.model, rho=0.1, lr=0.05, momentum=0.9, **options)
    sam = SAM(reference.weights, torch.optim.SGD, model=reference.model, rho=0.1, lr=0.05, momentum=0.9)
    for _ in range(9):
        ours.step(optimizer)
        reference.step(sam)
    # ESAM sums its rows in another order, LE-SAM divides in another.
    tolerance = 1e-12 if kind in (ESAM, LESAM) else 0
    for a, b in zip(ours.weights, reference.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RandomSAM, {"probability": 0.0}),
        (LateSAM, {"total_steps": 99, "begin": 0.9}),
        (RampSAM, {"total_steps": 9, "first": 0.0, "last": 0.0}),
        (RandomCountSAM, {"total_steps": 9, "count": 0}),
        (VSAM, {"gradient_budget": 1.0}),
    ],
)
def test_at_a_rate_of_zero_a_member_is_the_base_optimizer(problem, kind, options):
    ours, plain = problem(), problem()
    optimizer = kind(ours.weights, torch.optim.SGD, model=ours.model, rho=0.1, lr=0.05, momentum=0.9, **options)
    reference = torch.optim.SGD(plain.weights, lr=0.05, momentum=0.9)
    for _ in range(9):
        ours.step(optimizer)
        plain.step(reference)
    assert equal(ours.weights, plain.weights)


def assert_a_run_keeps_its_promises(any_task, member, base, steps):
    task = any_task()
    lengthened = {"total_steps": steps} if "total_steps" in member.options else {}
    optimizer = member.build(task, base, **lengthened)
    sizes = []
    for step in range(1, steps + 1):
        task.step(optimizer)
        assert int(task.model[1].num_batches_tracked) == step
        if step in (steps // 2, steps):
            sizes.append(sum(t.nbytes for t in tensors_of(optimizer)))
    assert optimizer.gradient_evaluations == pytest.approx(task.passes)
    assert optimizer.forwards == task.forwards
    least, most = optimizer.declared_cost()
    # A payment more or less at the ends, and four deviations of a binomial number where chance decides.
    slack = (1 / steps + (2 / math.sqrt(steps) if member.name == "random_sam" else 0)) * (most > 1)
    assert least - slack <= optimizer.gradient_evaluations / steps <= most + slack
    parameters = sum(w.nbytes for w in task.weights)
    plain = member.build_base(task, base)
    task.step(plain)
    own_scalars = 8 * 4 * len(task.weights)
    assert sizes[1] <= sum(t.nbytes for t in tensors_of(plain)) + COPIES[member.name] * parameters + own_scalars
    assert sizes[1] <= sizes[0]
    assert not any(vars(w) for w in task.weights)
    assert all(torch.isfinite(w).all() for w in task.weights)


def test_cost_and_memory_are_as_declared_and_batch_norm_moves_once_a_step(any_task, member):
    assert_a_run_keeps_its_promises(any_task, member, "momentum", 200)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_nothing_grows_over_ten_thousand_steps(any_task, member):
    assert_a_run_keeps_its_promises(any_task, member, "momentum", 10_000)


def at_its_costliest_step(any_task, member, **options):
    """A problem and an optimizer that stand before the step, of the first 20, that calls the closure most often."""
    task = any_task()
    optimizer = member.build(task, **options)
    ahead, copied = copy.deepcopy((task, optimizer))
    calls = []
    for _ in range(20):
        before = ahead.forwards
        ahead.step(copied)
        calls.append(ahead.forwards - before)
    # Not the first two: there members remember nothing yet.
    chosen = max(range(2, 20), key=lambda step: calls[step])
    for _ in range(chosen):
        task.step(optimizer)
    return task, optimizer, calls[chosen]


def disturbed(task, optimizer, disturb):
    """The closure of the next step; `disturb(call, loss, backward)` may raise or return another loss."""
    calls = 0

    def loss_of(rows, backward):
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        losses = task.row_losses(rows)
        loss = disturb(calls, losses.mean(), backward)
        return loss, losses.detach()

    def closure(rows=slice(None)):
        return loss_of(rows, True)[0]

    def closure_of_rows(rows=slice(None), backward=True):
        return loss_of(rows, backward)

    return closure_of_rows if optimizer.method.needs_row_losses else closure


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_closure_that_raises_in_any_pass_leaves_everything_as_it_was(any_task, member, error):
    redraw = {"dropout": "redraw"} if member.second_pass else {}
    task, optimizer, calls = at_its_costliest_step(any_task, member, **redraw)
    weights, state, extra = task.copies(), tensors_of(optimizer), repr(optimizer.extra_state())
    undisturbed, twin = copy.deepcopy((task, optimizer))
    for failing in range(1, calls + 1):
        for after_backward in (False, True):

            def disturb(call, loss, backward, failing=failing, after_backward=after_backward):
                if call == failing and not after_backward:
                    raise error
                if backward:
                    loss.backward()
                if call == failing:
                    raise error
                return loss

            with pytest.raises(error):
                optimizer.step(disturbed(task, optimizer, disturb), batch_size=BATCH)
            assert equal(task.weights, weights)
            assert equal(tensors_of(optimizer), state)
            assert repr(optimizer.extra_state()) == extra
            assert task.model[0].weight_offset is None
            assert task.model[1].track_running_stats
    for _ in range(3):
        task.step(optimizer)
        undisturbed.step(twin)
    assert equal(task.weights, undisturbed.weights)


@pytest.mark.parametrize("policy", ["skip", "stop"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_in_any_pass_leaves_no_trace(any_task, member, policy, bad):
    start, first, calls = at_its_costliest_step(any_task, member, nonfinite=policy)
    for failing in range(1, calls + 1):
        task, optimizer = copy.deepcopy((start, first))
        weights, state, age = task.copies(), tensors_of(optimizer), optimizer.psf.age
        reached = False

        def disturb(call, loss, backward, failing=failing):
            nonlocal reached
            loss = loss * (bad if call == failing else 1.0)
            if backward:
                loss.backward()
                reached |= call == failing
            return loss

        optimizer.step(disturbed(task, optimizer, disturb), batch_size=BATCH)
        task.turn += 1
        if reached:
            assert equal(task.weights, weights)
            assert equal(tensors_of(optimizer), state)
            assert optimizer.psf.age == age
            assert (optimizer.skipped, optimizer.stopped) == (1, policy == "stop")
        numbers = optimizer.schedule.state_dict().values()
        assert all(math.isfinite(n) for v in numbers for n in (v if isinstance(v, list) else [v]) if n is not None)
        for _ in range(4):
            task.step(optimizer)
        assert all(torch.isfinite(t).all() for t in (*task.weights, *tensors_of(optimizer)))
        assert equal(task.weights, weights) is (policy == "stop" and reached)


def test_a_gradient_of_zero_is_the_base_optimizers_step(any_task, member, base):
    ours, plain = any_task(), any_task()
    optimizer = member.build(ours, base)
    reference = member.build_base(plain, base)

    def nothing(call, loss, backward):
        if backward:
            (loss * 0).backward()
        return loss

    for _ in range(8):
        optimizer.step(disturbed(ours, optimizer, nothing), batch_size=BATCH)
        for w in plain.weights:
            w.grad = torch.zeros_like(w)
        reference.step()
    assert equal(ours.weights, plain.weights)
    assert all(torch.isfinite(t).all() for t in tensors_of(optimizer))


class Difficult(nn.Module):
    """A tied, a frozen and a late layer, and one that only some passes of a step use."""

    def __init__(self, tied):
        super().__init__()
        self.tied, self.norm, self.frozen = tied, nn.BatchNorm1d(5), nn.Linear(5, 5)
        self.late, self.flickering, self.head = (nn.Linear(5, 5) for _ in range(3))
        self.frozen.requires_grad_(False)
        self.uses_late = self.uses_flickering = False

    def forward(self, x):
        x = self.tied(torch.tanh(self.frozen(self.norm(self.tied(x)))))
        x = self.late(x) if self.uses_late else x
        return self.head(self.flickering(x) if self.uses_flickering else x)


@pytest.mark.parametrize("used_in", [1, 2])
def test_frozen_tied_late_and_flickering_parameters(any_task, member, base, used_in):
    task = any_task()
    task.model = Difficult(type(task.model[0])(5, 5)).double()
    optimizer = member.build(task, base)
    frozen, late = task.model.frozen.weight.clone(), task.model.late.weight.detach().clone()
    forwards = 0

    def flicker(module, args):
        nonlocal forwards
        forwards += 1
        module.uses_flickering = forwards == used_in

    task.model.register_forward_pre_hook(flicker)
    for step in range(10):
        task.model.uses_late = step in (4, 5, 6)
        forwards = 0
        task.step(optimizer)
        if step == 3:
            assert torch.equal(task.model.late.weight, late)
    assert torch.equal(task.model.frozen.weight, frozen)
    assert not torch.equal(task.model.late.weight, late)
    assert all(torch.isfinite(t).all() for t in (*task.weights, *tensors_of(optimizer)))
    # At a rate of zero nothing but a displacement could have moved them.
    before = task.copies()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(3):
        forwards = 0
        task.step(optimizer)
    assert equal(task.weights, before)
