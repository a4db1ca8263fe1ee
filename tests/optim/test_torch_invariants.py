"""PyTorch's own list of optimizer settings, each as a base of each member; and what it asks of any optimizer."""

import copy
import pickle

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

from qat_vsam.optim import FAMILY

BASES = {"SGD", "AdamW"}
SETTINGS = [
    pytest.param(info.optim_cls, entry.kwargs, id=f"{info.optim_cls.__name__}-{entry.desc}")
    for info in optim_db
    if info.optim_cls.__name__ in BASES
    for entry in info.optim_inputs_func(device="cpu")
    if not entry.kwargs.get("differentiable") and not entry.kwargs.get("capturable")
]
REFUSED = [
    pytest.param(info.optim_cls, error, id=f"{info.optim_cls.__name__}-{error.optimizer_error_input.desc}")
    for info in optim_db
    if info.optim_cls.__name__ in BASES
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
]


def build(member, task, base, **options):
    return FAMILY[member.name](task.weights, base, model=task.model, **{**member.options, **options})


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))


@pytest.mark.parametrize(("base", "kwargs"), SETTINGS)
def test_each_setting_is_the_base_at_radius_zero(any_task, member, base, kwargs):
    if member.name == "split_sgd":
        pytest.skip("has no radius, and a mean of two parts rounds")
    kwargs = {"lr": 0.01, **kwargs}
    ours, plain = any_task(), any_task()
    optimizer = build(member, ours, base, rho=0.0, **copy.deepcopy(kwargs))
    reference = base(plain.weights, **copy.deepcopy(kwargs))
    for _ in range(3):
        ours.step(optimizer)
        plain.step(reference)
    assert equal(ours, plain)


@pytest.mark.nightly
@pytest.mark.parametrize(("base", "kwargs"), SETTINGS)
def test_each_setting_resumes_exactly(any_task, member, base, kwargs):
    kwargs = {"lr": 0.01, **kwargs}
    task = any_task()
    optimizer = build(member, task, base, **copy.deepcopy(kwargs))
    for _ in range(3):
        task.step(optimizer)
    again = copy.deepcopy(task)
    resumed = build(member, again, base, **copy.deepcopy(kwargs))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        task.step(optimizer)
        again.step(resumed)
    assert equal(task, again)
    assert all(torch.isfinite(w).all() for w in task.weights)


@pytest.mark.parametrize(("base", "error"), REFUSED)
def test_what_the_base_refuses_is_refused(member, base, error):
    given = error.optimizer_error_input
    with pytest.raises(error.error_type, match=error.error_regex):
        FAMILY[member.name](given.params, base, **{**member.options, **given.kwargs})


def test_the_loss_goes_down(any_task, member, base):
    task = any_task()
    task.x, task.y = task.x[:1].expand(8, -1, -1), task.y[:1].expand(8, -1)
    optimizer = member.build(task, base)
    before = task.loss().item()
    for _ in range(30):
        task.step(optimizer)
    assert task.loss().item() < before


def test_parameters_without_any_gradient_stay_where_they_are(any_task, member, base):
    task = any_task()
    optimizer, before = member.build(task, base), task.copies()

    def closure(rows=slice(None), backward=True):
        loss = torch.zeros((), dtype=torch.float64)
        return (loss, torch.zeros(12)) if optimizer.method.needs_row_losses else loss

    for _ in range(3):
        optimizer.step(closure, batch_size=12)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))


def test_it_is_printed_pickled_and_its_state_is_deterministic(any_task, member):
    task, same = any_task(), any_task()
    optimizer, twin = member.build(task), member.build(same)
    for _ in range(4):
        task.step(optimizer)
        same.step(twin)
    assert type(optimizer).__name__ in repr(optimizer)
    torch.set_printoptions(precision=17, threshold=10_000)
    try:
        assert repr(optimizer.state_dict()) == repr(twin.state_dict())
    finally:
        torch.set_printoptions(profile="default")
    copied_task, copied = pickle.loads(pickle.dumps((task, optimizer)))
    task.step(optimizer)
    copied_task.step(copied)
    assert equal(task, copied_task)


def test_a_learning_rate_in_a_tensor_counts_as_its_number(any_task, member):
    results = []
    for rate in (0.05, torch.tensor(0.05)):
        task = any_task()
        optimizer = member.build(task, lr=rate)
        for _ in range(4):
            task.step(optimizer)
        results.append(task)
    for a, b in zip(results[0].weights, results[1].weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
