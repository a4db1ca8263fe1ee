"""What a base optimizer does with gradients and groups decides where uphill is, and whose `rho` a group has."""

import copy

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import optim_db

from qat_vsam.errors import ConfigError
from qat_vsam.optim import FAMILY, SAM

OTHERS = {"LBFGS", "SparseAdam", "Muon"}  # need a closure, sparse gradients, matrices
SETTINGS = [
    pytest.param(info.optim_cls, entry.kwargs, id=f"{info.optim_cls.__name__}-{entry.desc}")
    for info in optim_db
    if info.optim_cls.__name__ not in OTHERS
    for entry in info.optim_inputs_func(device="cpu")
    if not entry.kwargs.get("differentiable") and not entry.kwargs.get("capturable")
]


def run(member, task, sign, **more):
    optimizer = member.build(task, **more)

    def closure(rows=slice(None), backward=True):
        optimizer.zero_grad()
        losses = sign * task.row_losses(rows)
        if backward:
            losses.mean().backward()
        return (losses.mean(), losses.detach()) if optimizer.method.needs_row_losses else losses.mean()

    for _ in range(8):
        optimizer.step(closure, batch_size=12)
        task.turn += 1
    return task


@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_to_maximize_is_to_minimize_the_negative(any_task, member, base):
    radius = {} if "rho" in FAMILY[member.name].settles else {"rho": 0.3}
    up = run(member, any_task(), -1.0, base=base, maximize=True, **radius)
    down = run(member, any_task(), 1.0, base=base, **radius)
    for a, b in zip(up.weights, down.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_each_group_goes_to_the_worse_side_of_its_own_objective(problem):
    task = problem()
    first, *rest = task.weights
    groups = [{"params": [first], "maximize": True}, {"params": rest}]
    optimizer = SAM(groups, torch.optim.SGD, model=task.model, rho=0.3, lr=0.0)
    places, gradients = [], []

    def closure():
        optimizer.zero_grad()
        places.append(task.copies())
        loss = task.loss()
        loss.backward()
        gradients.append([w.grad.clone() for w in task.weights])
        return loss

    optimizer.step(closure)
    length = torch.cat([g.flatten() for g in gradients[0]]).norm()
    for sign, w, displaced, g in zip([-1, 1, 1, 1], *places, gradients[0], strict=True):
        torch.testing.assert_close(displaced - w, sign * 0.3 * g / length)


@pytest.mark.parametrize(("base", "kwargs"), SETTINGS)
def test_each_setting_of_torch_steps_with_the_gradient_at_the_radius_asked_for(problem, base, kwargs):
    kwargs = {"lr": 0.01, **kwargs}
    if base is torch.optim.Adadelta:
        kwargs.pop("rho", None)  # the optimizer's own, which the groups can set
    ours, plain = problem(), problem()
    optimizer = SAM(ours.weights, base, model=ours.model, rho=0.3, **copy.deepcopy(kwargs))
    reference = base(plain.weights, **copy.deepcopy(kwargs))
    sign = -1 if kwargs.get("maximize") else 1
    for _ in range(3):
        ours.step(optimizer)
        reference.zero_grad()
        plain.loss().backward()
        gradients = [w.grad.clone() for w in plain.weights]
        length = torch.cat([g.flatten() for g in gradients]).norm()
        before = plain.copies()
        with torch.no_grad():
            for w, g in zip(plain.weights, gradients, strict=True):
                w.add_(g, alpha=float(sign * 0.3 / length))
        reference.zero_grad()
        plain.loss().backward()
        with torch.no_grad():
            for w, value in zip(plain.weights, before, strict=True):
                w.copy_(value)
        reference.step()
        plain.turn += 1
    for a, b in zip(ours.weights, plain.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_a_rho_of_the_base_optimizer_stays_its_own():
    model = nn.Linear(4, 3)
    groups = [
        {"params": [model.weight], "rho": 0.5, "perturbation_rho": 0.2},
        {"params": [model.bias]},
    ]
    optimizer = SAM(groups, torch.optim.Adadelta, model=model, rho=0.1)
    assert [(g["rho"], g["perturbation_rho"]) for g in optimizer.param_groups] == [(0.5, 0.2), (0.9, 0.1)]
    with pytest.raises(ConfigError, match=r"^perturbation_rho of a group: got -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "perturbation_rho": -1})
    resumed = SAM([{"params": [p]} for p in model.parameters()], torch.optim.Adadelta, model=model)
    resumed.load_state_dict(optimizer.state_dict())
    assert [g["perturbation_rho"] for g in resumed.param_groups] == [0.2, 0.1]


@pytest.mark.parametrize("rho", [-1.0, None, float("nan"), "0.1", True])
def test_a_radius_of_a_group_that_is_none_is_refused(rho):
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match=r"^rho of a group: got "):
        SAM([{"params": [parameter], "rho": rho}], torch.optim.SGD, lr=0.1)
    optimizer = SAM([parameter], torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError, match=r"^rho of a group: got "):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": rho})
    assert len(optimizer.param_groups) == 1
