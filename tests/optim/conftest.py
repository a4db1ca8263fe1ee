"""A small classification problem, as a network with closures and as a function for the twins; all members on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from qat_vsam.optim import FAMILY, SharpnessAware

BATCH = 12


class QuantizedLinear(nn.Linear):
    """A layer with a coarse weight quantizer (grid 1/4, straight-through) and an offset behind it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight_offset: Tensor | None = None

    def weight_step_size(self) -> Tensor:
        return torch.full((), 0.25, dtype=self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        quantized = self.weight + ((self.weight * 4).round() / 4 - self.weight).detach()
        used = quantized if self.weight_offset is None else quantized + self.weight_offset
        return F.linear(x, used, self.bias)


class Watcher(nn.Module):
    """Counts forward passes unless told to stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.updates_state = True
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += self.updates_state
        return x


class Problem:
    """A network and eight batches, which the steps take in turn.

    `forwards` and `passes` count what the network really does: forward passes, and backward passes weighted
    by their share of the batch, the latter by a hook on its output.
    """

    def __init__(self, model: nn.Module, inputs: int, seed: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = model.to(dtype)
        self.x = torch.randn(8, BATCH, inputs, generator=generator, dtype=dtype)
        self.y = torch.randint(0, 3, (8, BATCH), generator=generator)
        self.turn = 0
        self.passes = 0.0
        self.forwards = 0

    @property
    def weights(self) -> list[Tensor]:
        return list(self.model.parameters())

    def copies(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.weights]

    def row_losses(self, rows: Any = slice(None)) -> Tensor:
        logits = self.model(self.x[self.turn % 8][rows])
        self.forwards += 1
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return F.cross_entropy(logits, self.y[self.turn % 8][rows], reduction="none")

    def loss(self, rows: Any = slice(None)) -> Tensor:
        return self.row_losses(rows).mean()

    def closure(self, optimizer: Optimizer) -> Callable[..., Any]:
        """With the losses of the rows too, where the optimizer's method needs them."""

        def closure(rows: slice = slice(None)) -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(rows)
            loss.backward()
            return loss

        def closure_of_rows(rows: Any = slice(None), backward: bool = True) -> tuple[Tensor, Tensor]:
            optimizer.zero_grad()
            losses = self.row_losses(rows)
            if backward:
                losses.mean().backward()
            return losses.mean(), losses.detach()

        method = getattr(optimizer, "method", None)
        return closure_of_rows if getattr(method, "needs_row_losses", False) else closure

    def step(self, optimizer: Optimizer, batch_size: int | None = BATCH) -> Tensor:
        """One step on the batch whose turn it is; a plain torch optimizer works too."""
        options = {"batch_size": batch_size} if hasattr(optimizer, "gradient_evaluations") else {}
        loss = optimizer.step(self.closure(optimizer), **options)
        self.turn += 1
        return loss

    def gradient(self, w: list[Tensor], rows: Any) -> list[Tensor]:
        """For the twins: the gradients at `w`, without touching the network."""
        leaves = [wi.clone().requires_grad_() for wi in w]
        return list(torch.autograd.grad(self._losses_at(leaves, rows).mean(), leaves))

    def loss_at(self, w: list[Tensor], rows: Any) -> float:
        """For VSAM's twin: the mean loss of some rows at `w`."""
        with torch.no_grad():
            return self._losses_at(w, rows).mean().item()

    def losses_at(self, w: list[Tensor]) -> list[float]:
        """For ESAM's twin: the losses of the rows at `w`."""
        with torch.no_grad():
            return self._losses_at(w, slice(None)).tolist()

    def gradients_behind(self, w: list[Tensor], e: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For SAQ's twin: with Q(w) + e as weights, the gradients at w and at Q(w)."""
        leaves = [wi.clone().requires_grad_() for wi in w]
        offsets = [ei.clone().requires_grad_() for ei in e]
        quantized = {
            f"{name}.weight": layer for name, layer in self.model.named_modules() if isinstance(layer, QuantizedLinear)
        }
        used = []
        for (name, _), leaf, offset in zip(self.model.named_parameters(), leaves, offsets, strict=True):
            used.append(leaf if name in quantized else leaf + offset)
            if name in quantized:
                quantized[name].weight_offset = offset
        try:
            found = torch.autograd.grad(self._losses_at(used, slice(None)).mean(), [*leaves, *offsets])
        finally:
            for layer in quantized.values():
                layer.weight_offset = None
        return list(found[: len(w)]), list(found[len(w) :])

    def _losses_at(self, w: list[Tensor], rows: Any) -> Tensor:
        names = [name for name, _ in self.model.named_parameters()]
        logits = functional_call(self.model, dict(zip(names, w, strict=True)), (self.x[self.turn % 8][rows],))
        return F.cross_entropy(logits, self.y[self.turn % 8][rows], reduction="none")

    def _count_backward(self, grad: Tensor) -> None:
        self.passes += len(grad) / BATCH


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
    "vsam-variance": Member("vsam", {"schedule": "variance", "warmup_steps": 4, "window": 10, "norm_tensors": 3}),
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
    "variance": Member("vsam", {"schedule": "variance", "warmup_steps": 5}),
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
