"""Parameters that are frozen, tied, late or in half precision."""

import math

import pytest
import torch
from problem import BATCH
from torch import nn

from qat_vsam.optim import VSAM, SplitSGD


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
    optimizer = SplitSGD([a, b], torch.optim.SGD, share=0.25, rate=1.0, lr=1.0)

    def closure(rows=slice(None)):
        optimizer.zero_grad()
        loss = (a if rows.start == 0 else b).sum()
        loss.backward()
        return loss

    optimizer.step(closure, batch_size=8)
    assert (a.item(), b.item()) == (0.75, 0.25)


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
