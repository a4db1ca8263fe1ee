"""The gradient that the step is made with can be clipped, seen and changed."""

import copy
import io
import math

import pytest
import torch

from qat_vsam.errors import ConfigError
from qat_vsam.optim import SAM, VSAM

LIMIT = 0.05


def clip(optimizer):
    torch.nn.utils.clip_grad_norm_(list(optimizer.parameters()), LIMIT)


def assert_same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_clipping_is_torchs_clipping_of_the_gradient_of_the_step(problem):
    """By hand: SAM's gradient by two passes, `clip_grad_norm_`, the base optimizer's step."""
    ours, hand = problem(), problem()
    optimizer = SAM(ours.weights, torch.optim.SGD, lr=0.1, momentum=0.9, rho=0.1, max_grad_norm=LIMIT)
    base = torch.optim.SGD(hand.weights, lr=0.1, momentum=0.9)
    for _ in range(20):
        ours.step(optimizer)
        g = hand.gradient(hand.copies(), slice(None))
        norm = torch.sqrt(sum(gi.square().sum() for gi in g))
        displaced = [w + 0.1 * gi / norm for w, gi in zip(hand.copies(), g, strict=True)]
        for w, gs in zip(hand.weights, hand.gradient(displaced, slice(None)), strict=True):
            w.grad = gs
        before = torch.nn.utils.clip_grad_norm_(hand.weights, LIMIT)
        assert optimizer.statistics()["gradient_norm"] == pytest.approx(float(before))
        assert float(before) > LIMIT
        base.step()
        hand.turn += 1
    for a, b in zip(ours.weights, hand.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_every_member_clips_by_the_option_and_by_a_hook_alike(any_task, member):
    one, other = any_task(), any_task()
    by_option = member.build(one, max_grad_norm=LIMIT)
    by_hook = member.build(other)
    by_hook.register_gradient_hook(clip)
    for _ in range(12):
        one.step(by_option)
        other.step(by_hook)
    for a, b in zip(one.weights, other.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_limit_that_is_never_reached_changes_nothing(problem):
    one, other = problem(), problem()
    limited = VSAM(one.weights, torch.optim.SGD, lr=0.1, momentum=0.9, max_grad_norm=1e6)
    free = VSAM(other.weights, torch.optim.SGD, lr=0.1, momentum=0.9)
    for _ in range(10):
        one.step(limited)
        other.step(free)
    assert_same(one.weights, other.weights)


@pytest.mark.parametrize("by_hook", [True, False])
def test_under_a_scaler_true_gradients_are_clipped(problem, by_hook):
    scaled, plain = problem(), problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    options = {"lr": 0.1, "momentum": 0.9, "max_grad_norm": None if by_hook else LIMIT}
    optimizer = SAM(scaled.weights, torch.optim.SGD, grad_scaler=scaler, **options)
    reference = SAM(plain.weights, torch.optim.SGD, **options)
    if by_hook:
        optimizer.register_gradient_hook(clip)
        reference.register_gradient_hook(clip)

    def closure():
        optimizer.zero_grad()
        loss = scaled.loss()
        scaler.scale(loss).backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
        scaler.update()
        scaled.turn += 1
        plain.step(reference)
    assert_same(scaled.weights, plain.weights)


def test_hooks_run_once_a_step_in_order_and_can_be_taken_off(problem):
    task = problem()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, nonfinite="skip")
    seen = []
    first = optimizer.register_gradient_hook(lambda o: seen.append(("first", o.param_groups[0]["params"][0].grad)))
    optimizer.register_gradient_hook(lambda o: seen.append(("second", None)))
    task.step(optimizer)
    assert [name for name, _ in seen] == ["first", "second"]
    assert seen[0][1] is not None
    first.remove()
    task.step(optimizer)
    assert [name for name, _ in seen[2:]] == ["second"]


def test_a_hook_sees_no_gradient_of_a_step_that_is_left_out(problem):
    task = problem()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, nonfinite="skip")
    seen = []
    optimizer.register_gradient_hook(seen.append)
    task.x[0] = math.nan
    task.step(optimizer)
    task.step(optimizer)
    assert (optimizer.skipped, len(seen)) == (1, 1)


def test_a_hook_may_replace_the_gradients(problem):
    task = problem()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=1.0)
    before = task.copies()

    def ones(optimizer):
        for parameter in optimizer.parameters():
            parameter.grad = torch.ones_like(parameter)

    optimizer.register_gradient_hook(ones)
    task.step(optimizer)
    for w, old in zip(task.weights, before, strict=True):
        torch.testing.assert_close(w.detach(), old - 1)


def test_copies_and_pickles_have_no_hooks_as_with_torchs_own(problem):
    task = problem()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, model=task.model)
    calls = []
    optimizer.register_gradient_hook(lambda o: calls.append("gradient"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append("step"))
    task.step(optimizer)
    assert calls == ["gradient", "step"]
    copied_task, copied = copy.deepcopy((task, optimizer))
    copied_task.step(copied)
    file = io.BytesIO()
    torch.save((task.model, optimizer), file)
    file.seek(0)
    _, unpickled = torch.load(file, weights_only=False)
    task.step(unpickled)
    assert calls == ["gradient", "step"]
    handle = copied.register_gradient_hook(lambda o: calls.append("new"))
    copied_task.step(copied)
    handle.remove()
    copied_task.step(copied)
    assert calls[2:] == ["new"]


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_must_be_positive(problem, limit):
    with pytest.raises(ConfigError, match=r"^max_grad_norm: got"):
        SAM(problem().weights, torch.optim.SGD, lr=0.1, max_grad_norm=limit)
