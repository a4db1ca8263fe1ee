"""Every perturbation goes with every schedule: e = r T^2 d / (|T d| + 1e-12), as the network sees it."""

import pytest
import torch

from qat_vsam.optim import (
    PSF,
    BudgetSchedule,
    During,
    EveryStep,
    GradientNormSchedule,
    Periodic,
    Ramp,
    RandomSteps,
    Schedule,
    SharpnessAware,
    VarianceSchedule,
)
from qat_vsam.optim.budget_schedule import UnpaidBudget
from qat_vsam.optim.perturbation import PERTURBATIONS

BATCH, RHO, STEPS = 12, 0.3, 6
SCHEDULES = {
    "every-step": EveryStep,
    "half-of-the-batch": lambda: EveryStep(0.5),
    "budget": lambda: BudgetSchedule(1.4, share=0.5),
    "variance": lambda: VarianceSchedule(warmup_steps=4, window=10, norm_tensors=2),
    "periodic": lambda: Periodic(2),
    "random": lambda: RandomSteps(0.6, seed=1),
    "ramp": lambda: Ramp(0.3, 1.0, total_steps=STEPS),
    "during": lambda: During(0.4, 1.0, total_steps=STEPS),
    "gradient-norm": lambda: GradientNormSchedule(total_steps=STEPS),
}
ONE = torch.ones((), dtype=torch.float64)
# The tensors of the network: weight (quantized) and bias, scale and shift of a norm, weight and bias.
MOVES = {
    "euclidean": range(6),
    "adaptive": range(6),
    "step_size": [0],
    "post_quantizer": range(6),
    "friendly": range(6),
    "norm_only": [2, 3],
    "loss_increase": range(6),
}


def units(name, weights):
    if name == "adaptive":
        return [w.abs() + 0.01 if w.dim() > 1 else ONE for w in weights]
    return [0.25 * ONE if name == "step_size" else ONE for _ in weights]


def norm(tensors):
    return torch.cat([t.flatten() for t in tensors]).norm()


class Probe:
    """A closure that notes, at each call, where the weights stood and which gradients they got."""

    def __init__(self, task, optimizer, behind_quantizer):
        self.task, self.optimizer, self.behind = task, optimizer, behind_quantizer
        self.seen = []

    def __call__(self, rows=slice(None)):
        self.optimizer.zero_grad()
        loss = self.task.loss(rows)
        loss.backward()
        layer, weights = self.task.model[0], self.task.copies()
        gradients = [w.grad.clone() for w in self.task.weights]
        if self.behind and layer.weight_offset is not None:
            # Q(w) stands at Q(w) + offset; the offset's gradient is that at Q(w).
            self.latent = weights[0]
            weights[0] = layer.weight_offset.detach().clone()
            if layer.weight_offset.grad is not None:
                gradients[0] = layer.weight_offset.grad.clone()
        self.seen.append((weights, gradients, rows))
        return loss


def test_every_combination_has_its_row():
    assert set(MOVES) == set(PERTURBATIONS)
    kinds = {type(build()) for build in SCHEDULES.values()}
    pending = Schedule.__subclasses__()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        # the control for a split batch pays for nothing, so nothing is displaced
        assert kind in kinds or kind.__subclasses__() or kind is UnpaidBudget, kind


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", MOVES)
def test_the_displacement_is_the_formula(any_task, name, schedule):
    task = any_task()
    optimizer = SharpnessAware(
        task.weights,
        torch.optim.SGD,
        model=task.model,
        perturbation=name,
        schedule=SCHEDULES[schedule](),
        psf=PSF(0.7),
        rho=RHO,
        lr=0.05,
        momentum=0.9,
    )
    mean, payments = None, 0
    for _ in range(STEPS):
        probe = Probe(task, optimizer, name == "post_quantizer")
        before = task.copies()
        optimizer.step(probe, batch_size=BATCH)
        task.turn += 1
        weights, g, rows = probe.seen[0]
        d = [gi - mi for gi, mi in zip(g, mean, strict=True)] if name == "friendly" and mean else g
        if optimizer.last_share:
            payments += 1
            there, _, rows_there = probe.seen[1]
            assert rows == rows_there
            T = units(name, before)
            Td = norm([T[i] * d[i] for i in MOVES[name]])
            r = min(0.1 / (Td + 1e-12), RHO) if name == "loss_increase" else RHO
            for i, (w, displaced) in enumerate(zip(weights, there, strict=True)):
                e = r * T[i] ** 2 * d[i] / (Td + 1e-12) if i in MOVES[name] else torch.zeros_like(w)
                torch.testing.assert_close(displaced - w, e, rtol=0, atol=1e-12)
            if name == "post_quantizer":
                assert torch.equal(probe.latent, before[0])
        if name == "friendly":
            mean = g if mean is None else [0.9 * mi + 0.1 * gi for mi, gi in zip(mean, g, strict=True)]
            for w, m in zip(task.weights, mean, strict=True):
                torch.testing.assert_close(optimizer.state[w]["direction"], m, rtol=0, atol=1e-12)
    assert payments > 0
    assert all(torch.isfinite(w).all() for w in task.weights)
