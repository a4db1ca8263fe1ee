"""Training steps to be timed side by side: float32, quantized by us, and quantized by others.

All workloads of a set start from the same random network, see the same random batch in channels_last, and
differ in one thing each. Optimizers come from outside, as functions of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Optimizer

from qat_vsam.evaluate.rivals import use_native_operator
from qat_vsam.models import build_model
from qat_vsam.quant import QuantSpec, calibrate, prepare, set_compiled
from qat_vsam.quant.backends.brevitas import to_brevitas

OptimizerFactory = Callable[[nn.Module], Optimizer]

DEFAULT = "default"
# How the quantized step is made from a prepared and calibrated model. The first is what everybody gets: fused
# quantizers where a compiler is found.
IMPLEMENTATIONS = (DEFAULT, "eager", "compiled model", "compiled model bf16", "native", "brevitas")


class StepWorkload:
    """Training steps of one model and optimizer on one batch, over and over; call it to run `steps` of them.

    Args:
        model: in training mode.
        optimizer: over its parameters. One with an attribute `gradient_evaluations` is stepped by
            `step(closure, batch_size=B)` with a closure of rows, any other by `step(closure)`.
        x: images (B, C, H, W).
        y: labels (B,).
        steps: consecutive steps a call, so that an optimizer which pays at every second step is timed over a
            period.
        bf16: run the forward passes under autocast.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> workload = StepWorkload(model, optimizer, x, y, steps=2)
        >>> workload()
        >>> workload.gradient_evaluations_per_step
        1.0
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, steps: int = 1, bf16: bool = False
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.x = x
        self.y = y
        self.steps = steps
        self.bf16 = bf16

    def __call__(self) -> None:
        """Run the steps."""
        step: Any = self.optimizer.step
        for _ in range(self.steps):
            if hasattr(self.optimizer, "gradient_evaluations"):
                step(self._closure, batch_size=len(self.x))
            else:
                step(self._closure)

    @property
    def gradient_evaluations_per_step(self) -> float:
        """Mean so far, each weighted by its share of the batch; 1 for a plain optimizer."""
        optimizer: Any = self.optimizer
        if not hasattr(optimizer, "gradient_evaluations"):
            return 1.0
        return float(optimizer.gradient_evaluations) / max(int(optimizer.steps), 1)

    def _closure(self, rows: slice = slice(None)) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows])
        loss.backward()
        return loss


def resnet20_workloads(
    optimizers: Mapping[str, OptimizerFactory], *, batch_size: int = 128, **options: Any
) -> dict[str, StepWorkload]:
    """The set for the CIFAR ResNet-20 at 32 x 32 pixels; arguments as for `step_workloads`."""
    model = build_model("cifar_resnet20", seed=0)
    return step_workloads(model, (batch_size, 3, 32, 32), optimizers, **options)


def resnet18_workloads(
    optimizers: Mapping[str, OptimizerFactory], *, batch_size: int = 32, **options: Any
) -> dict[str, StepWorkload]:
    """The set for torchvision's ResNet-18 at 64 x 64 pixels; arguments as for `step_workloads`."""
    model = build_model("torchvision:resnet18", num_classes=10, seed=0)
    return step_workloads(model, (batch_size, 3, 64, 64), optimizers, **options)


def step_workloads(
    model: nn.Module,
    shape: tuple[int, int, int, int],
    optimizers: Mapping[str, OptimizerFactory],
    *,
    bits: str = "w4a4",
    implementations: tuple[str, ...] = IMPLEMENTATIONS,
    steps: int = 2,
) -> dict[str, StepWorkload]:
    """Float32 and quantized workloads of one network.

    For each optimizer: "float32 OPTIMIZER" and "BITS OPTIMIZER" (quantizers fused where a compiler is found, else
    eager). For the first optimizer also, as far as named in `implementations`: "BITS OPTIMIZER eager", "BITS
    OPTIMIZER compiled model" (`torch.compile` of the whole model; also under bfloat16 autocast), "BITS OPTIMIZER
    native" (PyTorch's learnable operator) and "BITS OPTIMIZER brevitas".

    Args:
        model: float network with at least ten classes; copied for each workload.
        shape: (B, C, H, W) of the random batch.
        optimizers: name and factory, the plain one first.
        bits: preset of the quantization; first and last layer have 8 bits, batch norms stay.
        implementations: subset of `IMPLEMENTATIONS`; none for float32 alone.
        steps: of each call, see `StepWorkload`.

    Raises:
        MissingDependencyError: brevitas or a compiler is asked for and missing.

    Example:
        >>> sgd = lambda model: torch.optim.SGD(model.parameters(), lr=0.01)
        >>> model = build_model("digits_cnn", seed=0)
        >>> chosen = ("default", "native")
        >>> workloads = step_workloads(model, (4, 1, 8, 8), {"sgd": sgd}, implementations=chosen)
        >>> list(workloads)
        ['float32 sgd', 'w4a4 sgd', 'w4a4 sgd native']
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, shape[:1], generator=generator)
    float_model = model.to(memory_format=torch.channels_last).train()
    quantized = float_model
    if implementations:
        quantized = copy.deepcopy(float_model)
        prepare(quantized, QuantSpec.preset(bits), sample=x[:2])
        calibrate(quantized, [x])
        quantized.train()

    def workload(base: nn.Module, factory: OptimizerFactory, implementation: str = DEFAULT) -> StepWorkload:
        own = _implement(copy.deepcopy(base), implementation)
        return StepWorkload(own, factory(own), x, y, steps, bf16=implementation.endswith("bf16"))

    workloads = {f"float32 {name}": workload(float_model, factory) for name, factory in optimizers.items()}
    if DEFAULT in implementations:
        workloads |= {f"{bits} {name}": workload(quantized, factory) for name, factory in optimizers.items()}
    name, factory = next(iter(optimizers.items()))
    for implementation in implementations:
        if implementation != DEFAULT:
            workloads[f"{bits} {name} {implementation}"] = workload(quantized, factory, implementation)
    return workloads


def _implement(model: nn.Module, implementation: str) -> nn.Module:
    if implementation == "eager":
        set_compiled(model, False)
    elif implementation.startswith("compiled model"):
        model.compile()
    elif implementation == "native":
        use_native_operator(model)
    elif implementation == "brevitas":
        to_brevitas(model)
        model.to(memory_format=torch.channels_last)
    return model
