"""fp16 with a GradScaler: true gradients in every pass, and one decision for all passes of a step."""

import copy
import math

import pytest
import torch
from problem import BATCH, tensors_of
from torch import nn

from qat_vsam.errors import InputError, NonFiniteError
from qat_vsam.optim import SAM, VSAM

ONE_PASS = {"msam", "s2_sam"}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


def scaler_of(**options):
    return torch.amp.GradScaler("cpu", **{"init_scale": 2.0**10, "growth_interval": 1000, **options})


def scaled_closure(task, optimizer, scaler, overflow_in=None):
    """The usual closure under a GradScaler; the gradients of pass number `overflow_in` are infinite."""
    passes = []

    def closure(rows=slice(None), backward=True):
        optimizer.zero_grad()
        losses = task.row_losses(rows)
        loss = losses.mean()
        if backward:
            passes.append(rows)
            (scaler.scale(loss) * (math.inf if len(passes) == overflow_in else 1.0)).backward()
        return (loss, losses.detach()) if optimizer.method.needs_row_losses else loss

    closure.passes = passes
    return closure


def scaled_step(task, optimizer, scaler, overflow_in=None):
    closure = scaled_closure(task, optimizer, scaler, overflow_in)
    optimizer.step(closure, batch_size=BATCH)
    scaler.update()
    task.turn += 1
    return len(closure.passes)


def assert_same(one, other):
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_member_steps_as_without_a_scaler(any_task, member):
    ours, plain = any_task(), any_task()
    scaler = scaler_of(growth_interval=7)
    optimizer = member.build(ours, grad_scaler=scaler)
    reference = member.build(plain)
    for _ in range(30):
        scaled_step(ours, optimizer, scaler)
        plain.step(reference)
    assert_same(ours.copies(), plain.copies())
    assert_same(tensors_of(optimizer), tensors_of(reference))
    assert optimizer.statistics() == pytest.approx(reference.statistics(), nan_ok=True)
    assert optimizer.skipped == 0
    assert scaler.get_scale() == 2.0 ** (10 + 30 // 7)


@pytest.mark.parametrize("bad_pass", [1, 2, 3])
def test_an_overflow_in_any_pass_skips_the_step_once_and_lowers_the_scale_once(any_task, member, bad_pass):
    task, scaler = any_task(), scaler_of()
    optimizer = member.build(task, grad_scaler=scaler)
    most = 1
    for step in range(1, 61):
        before, kept = task.copies(), tensors_of(optimizer)
        passes = scaled_step(task, optimizer, scaler, overflow_in=bad_pass)
        most = max(most, passes)
        assert optimizer.steps == step
        if passes >= bad_pass:
            break
    else:
        assert most < bad_pass
        assert most > 1 or member.name in ONE_PASS
        assert (optimizer.skipped, scaler.get_scale()) == (0, 2.0**10)
        return
    assert_same(task.copies(), before)
    assert_same(tensors_of(optimizer), kept)
    assert (optimizer.skipped, scaler.get_scale()) == (1, 2.0**9)
    scaled_step(task, optimizer, scaler)
    assert (optimizer.skipped, scaler.get_scale()) == (1, 2.0**9)
    assert any(not torch.equal(a, b) for a, b in zip(task.copies(), before, strict=True))
    assert all(torch.isfinite(weight).all() for weight in task.weights)


def test_an_overflow_that_only_the_first_pass_sees_skips_the_step_too(problem):
    """An unperturbed parameter's first gradient enters neither the ascent nor the gradient of SAM's step."""
    task, scaler = problem(), scaler_of()
    *perturbed, bias = task.weights
    groups = [{"params": perturbed, "role": "weight"}, {"params": [bias], "role": "bias"}]
    optimizer = SAM(groups, torch.optim.SGD, model=task.model, lr=0.1, grad_scaler=scaler)
    factors = iter([math.inf, 1.0])
    bias.register_hook(lambda gradient: gradient * next(factors))
    before = task.copies()
    scaled_step(task, optimizer, scaler)
    assert_same(task.copies(), before)
    assert (optimizer.skipped, scaler.get_scale()) == (1, 2.0**9)


@pytest.mark.parametrize("nonfinite", [None, "skip"])
def test_an_overflow_is_the_scalers_business(problem, nonfinite):
    task, scaler = problem(), scaler_of()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, grad_scaler=scaler, nonfinite=nonfinite)
    scaled_step(task, optimizer, scaler, overflow_in=1)
    scaled_step(task, optimizer, scaler)
    assert (optimizer.skipped, optimizer.stopped) == (1, False)
    assert math.isfinite(optimizer.statistics()["gradient_norm"])


@pytest.mark.parametrize("with_closure", [True, False])
@pytest.mark.parametrize("gradients_there", [True, False])
def test_a_step_through_the_scaler_is_refused_and_the_optimizer_stays_usable(problem, with_closure, gradients_there):
    task, scaler = problem(), scaler_of()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, grad_scaler=scaler)
    scaled_step(task, optimizer, scaler)
    before = task.copies()
    closure = scaled_closure(task, optimizer, scaler)
    if gradients_there:
        scaler.scale(task.loss()).backward()
    with pytest.raises(InputError, match=r"^GradScaler\.step.*call optimizer\.step\(closure\) and scaler\.update\(\)"):
        scaler.step(optimizer, *([closure] if with_closure else []))
    assert_same(task.copies(), before)
    scaled_step(task, optimizer, scaler)
    assert optimizer.skipped == 0
    assert any(not torch.equal(a, b) for a, b in zip(task.copies(), before, strict=True))


def test_a_step_through_a_scaler_that_the_optimizer_does_not_know_is_refused_too(problem):
    task, scaler = problem(), scaler_of()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1)
    scaler.scale(task.loss()).backward()
    with pytest.raises(InputError, match="build it with grad_scaler=scaler"):
        scaler.step(optimizer, lambda: task.loss())
    task.step(optimizer)


def test_forgetting_update_is_told_before_the_step_is_made(problem):
    task, scaler = problem(), scaler_of()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, grad_scaler=scaler)
    optimizer.step(scaled_closure(task, optimizer, scaler))
    before = task.copies()
    with pytest.raises(InputError, match=r"^grad_scaler: .*scaler\.update\(\) after each"):
        optimizer.step(scaled_closure(task, optimizer, scaler))
    assert_same(task.copies(), before)
    scaler.update()
    scaled_step(task, optimizer, scaler)
    assert optimizer.steps == 2


@pytest.mark.parametrize("failing", [1, 2])
def test_after_a_closure_that_raises_the_next_step_works(problem, failing):
    task, scaler = problem(), scaler_of()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, grad_scaler=scaler)
    whole = scaled_closure(task, optimizer, scaler)

    def closure():
        loss = whole()
        if len(whole.passes) == failing:
            raise RuntimeError("out of memory")
        return loss

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    scaled_step(task, optimizer, scaler)
    assert (optimizer.steps, optimizer.skipped, scaler.get_scale()) == (1, 0, 2.0**10)


def test_a_disabled_scaler_is_none(problem):
    ours, plain = problem(), problem()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = SAM(ours.weights, torch.optim.SGD, lr=0.1, grad_scaler=scaler)
    reference = SAM(plain.weights, torch.optim.SGD, lr=0.1)
    for _ in range(5):
        scaled_step(ours, optimizer, scaler)
        plain.step(reference)
    assert_same(ours.copies(), plain.copies())
    with pytest.raises(NonFiniteError):
        scaled_step(ours, optimizer, scaler, overflow_in=2)


def test_parameters_of_half_precision_are_refused(problem):
    weight, scaler = nn.Parameter(torch.ones(2, dtype=torch.float16)), scaler_of()
    optimizer = SAM([weight], torch.optim.SGD, lr=0.1, grad_scaler=scaler)

    def closure():
        loss = weight.sum()
        scaler.scale(loss).backward()
        return loss

    with pytest.raises(InputError, match=r"^grad_scaler: got gradients of type float16"):
        optimizer.step(closure)


def test_a_copy_of_model_optimizer_and_scaler_goes_on_alike(problem):
    task, scaler = problem(), scaler_of(growth_interval=3)
    optimizer = VSAM(task.weights, torch.optim.SGD, lr=0.1, momentum=0.9, model=task.model, grad_scaler=scaler)
    for _ in range(5):
        scaled_step(task, optimizer, scaler)
    other = copy.deepcopy((task, optimizer, scaler))
    for _ in range(5):
        scaled_step(task, optimizer, scaler)
        scaled_step(*other)
    assert_same(other[0].copies(), task.copies())
    assert other[2].get_scale() == scaler.get_scale()


def test_the_scaler_is_no_part_of_the_state(problem):
    task, plain = problem(), problem()
    scaler = scaler_of()
    optimizer = VSAM(task.weights, torch.optim.SGD, lr=0.1, model=task.model, grad_scaler=scaler)
    reference = VSAM(plain.weights, torch.optim.SGD, lr=0.1, model=plain.model)
    for _ in range(3):
        scaled_step(task, optimizer, scaler)
        plain.step(reference)
    assert str(optimizer.state_dict()) == str(reference.state_dict())
    reference.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(reference.state_dict())
    scaled_step(task, optimizer, scaler)
    plain.step(reference)
    assert_same(task.copies(), plain.copies())


@pytest.mark.parametrize("device", DEVICES)
def test_a_net_trains_in_half_precision_from_a_scale_that_is_too_large(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)).to(device)
    x, y = torch.randn(64, 8, device=device), torch.arange(64, device=device) % 2
    scaler = torch.amp.GradScaler(device, init_scale=2.0**24)
    optimizer = VSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.2, momentum=0.9, grad_scaler=scaler)

    def closure(rows=slice(None)):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        scaler.scale(loss).backward()
        return loss

    losses = []
    for _ in range(60):
        losses.append(float(optimizer.step(closure, batch_size=64)))
        scaler.update()
    assert 0 < optimizer.skipped < 20
    assert scaler.get_scale() == 2.0 ** (24 - optimizer.skipped)
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
