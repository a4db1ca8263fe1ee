"""PyTorch's own list of optimizer settings, each as a base: equal at radius zero, finite, and resumable."""

import copy

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

from qat_vsam.optim import SAM, VSAM

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


def with_learning_rate(kwargs):
    return {"lr": 0.01, **kwargs}


@pytest.mark.parametrize(("base", "kwargs"), SETTINGS)
def test_each_setting_is_the_base_at_radius_zero_and_resumes_with_one(problem, base, kwargs):
    kwargs = with_learning_rate(kwargs)
    ours, plain = problem(), problem()
    optimizer = SAM(ours.weights, base, model=ours.model, rho=0.0, **copy.deepcopy(kwargs))
    reference = base(plain.weights, **copy.deepcopy(kwargs))
    for _ in range(4):
        ours.step(optimizer)
        plain.step(reference)
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, plain.weights, strict=True))

    task = problem()
    optimizer = VSAM(task.weights, base, model=task.model, **copy.deepcopy(kwargs))
    for _ in range(5):
        task.step(optimizer)
    again = copy.deepcopy(task)
    resumed = VSAM(again.weights, base, model=again.model, **copy.deepcopy(kwargs))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(5):
        task.step(optimizer)
        again.step(resumed)
    assert all(torch.equal(a, b) for a, b in zip(task.weights, again.weights, strict=True))
    assert all(torch.isfinite(w).all() for w in task.weights)


@pytest.mark.parametrize(("base", "error"), REFUSED)
def test_what_the_base_refuses_is_refused(base, error):
    given = error.optimizer_error_input
    with pytest.raises(error.error_type, match=error.error_regex):
        SAM(given.params, base, **given.kwargs)
