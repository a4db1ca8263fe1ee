"""A closure that raises and a gradient that is not finite leave nothing behind."""

import math

import pytest
import torch
from problem import BATCH, tensors_of

from qat_vsam.errors import NonFiniteError


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("after_backward", [False, True])
def test_a_closure_that_raises_leaves_weights_momentum_and_flags(problem, paying_kind, error, failing, after_backward):
    task, undisturbed = (problem(batch_norm=True, watched=True) for _ in range(2))
    optimizer, twin = paying_kind.build(task), paying_kind.build(undisturbed)
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
    assert task.model[-1].updates_state
    assert optimizer.steps == 3
    for _ in range(3):
        task.step(optimizer)
        undisturbed.step(twin)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, undisturbed.weights, strict=True))


@pytest.mark.parametrize("bad_call", [1, 2])
def test_a_gradient_that_is_not_finite_raises_before_it_touches_anything(problem, kind, bad_call):
    task = problem()
    optimizer = kind.build(task)
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


def test_skipping_leaves_the_step_out_and_counts_it(problem, build):
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


def test_a_late_look_raises_within_its_period_and_before_a_state_is_saved(problem, build):
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
