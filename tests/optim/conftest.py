"""Small problems, all members of the family on them, and one of each kind of step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from problem import Problem, QuantizedLinear, Watcher
from torch import nn
from torch.optim import Optimizer

from qat_vsam.optim import FAMILY, SharpnessAware


@pytest.fixture
def problem() -> Callable[..., Problem]:
    """Builds a `Problem`: problem(seed, dtype, batch_norm, dropout, quantized, watched)."""

    def build(
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        batch_norm: bool = False,
        dropout: float = 0.0,
        quantized: bool = False,
        watched: bool = False,
    ) -> Problem:
        torch.manual_seed(seed)
        layers: list[nn.Module] = [QuantizedLinear(5, 8) if quantized else nn.Linear(5, 8)]
        if batch_norm:
            layers.append(nn.BatchNorm1d(8))
        layers.append(nn.Tanh())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(8, 3))
        if watched:
            layers.append(Watcher())
        return Problem(nn.Sequential(*layers), inputs=5, seed=seed, dtype=dtype)

    return build


@pytest.fixture
def any_task(problem: Callable[..., Problem]) -> Callable[..., Problem]:
    """Builds a `Problem` that every member works on: it has a quantized layer and a batch norm."""

    def build(seed: int = 0, dtype: torch.dtype = torch.float64) -> Problem:
        return problem(seed, dtype, batch_norm=True, quantized=True)

    return build


BASES: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}


@dataclass(frozen=True)
class Member:
    """A member of the family with options: `name` is its name in `FAMILY`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def second_pass(self) -> bool:
        """Whether it takes a gradient at w and one at w + e, in the steps that pay."""
        return self.name not in ("split_sgd", "msam", "s2_sam")

    def build(self, task: Problem, base: str = "momentum", **more: Any) -> SharpnessAware:
        base_class, base_options = BASES[base]
        options = {**base_options, **self.options, **more}
        return FAMILY[self.name](task.weights, base_class, model=task.model, **options)

    def build_base(self, task: Problem, base: str = "momentum") -> Optimizer:
        """The base optimizer alone."""
        base_class, base_options = BASES[base]
        return base_class(task.weights, **base_options)


# What members cannot be built without, for runs of about 20 steps. One that is missing here fails in every test.
NEEDED: dict[str, dict[str, Any]] = {
    "vsam_paper": {"warmup_steps": 4, "window": 10, "norm_tensors": 3},
    "ae_sam": {"total_steps": 20},
    "ae_looksam": {"total_steps": 20},
    "random_count_sam": {"count": 8, "total_steps": 20},
    "ramp_sam": {"total_steps": 20},
    "late_sam": {"total_steps": 20, "begin": 0.3},
}
MEMBERS: dict[str, Member] = {name: Member(name, NEEDED.get(name, {})) for name in FAMILY} | {
    "vsam-large-part": Member("vsam", {"share": 0.75, "gradient_budget": 1.5}),
    "vsam-ascend-part": Member("vsam", {"method": "ascend_part"}),
    "vsam-interval": Member("vsam", {"method": "interval", "share": 1.0, "gradient_budget": 1.4}),
    "vsam-learning-rate": Member("vsam", {"spend": "learning_rate"}),
    "vsam-reused": Member("vsam", {"reuse": 0.7}),
}


@pytest.fixture(params=MEMBERS.values(), ids=MEMBERS)
def member(request: pytest.FixtureRequest) -> Member:
    """Every member in turn."""
    found: Member = request.param
    return found


# One of each kind of step: where the second gradient is taken, on how much of the batch, and who decides when.
PAYING_KINDS = {
    "sam": Member("sam"),
    "part": Member("vsam", {"gradient_budget": 1.5}),
    "large-part": Member("vsam", {"share": 0.75, "gradient_budget": 1.75}),
    "ascend-part": Member("vsam", {"method": "ascend_part", "gradient_budget": 1.25}),
}
KINDS = PAYING_KINDS | {
    "part": Member("vsam", {"gradient_budget": 1.25}),
    "large-part": Member("vsam", {"share": 0.75, "gradient_budget": 1.5}),
    "interval": Member("vsam", {"method": "interval"}),
    "published": Member("vsam_paper", {"warmup_steps": 5}),
    "split": Member("split_sgd"),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Member:
    """Each kind of step in turn."""
    found: Member = request.param
    return found


@pytest.fixture(params=PAYING_KINDS.values(), ids=PAYING_KINDS)
def paying_kind(request: pytest.FixtureRequest) -> Member:
    """Each kind of step that takes a second gradient, every time."""
    found: Member = request.param
    return found


@pytest.fixture
def build() -> Callable[..., SharpnessAware]:
    """Builds an optimizer by its kind of step: build(task, "part", "adamw", **more)."""
    return lambda task, name, base="momentum", **more: KINDS[name].build(task, base, **more)


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> str:
    """Every base optimizer in turn, by name."""
    name: str = request.param
    return name
