"""What the workers of the distributed tests share: a network on several ranks, and its twin in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from qat_vsam.optim import AESAM, ASAM, ESAM, FSAM, MSAM, S2SAM, SAM, SAQ, VSAM, LookSAM, RandomSAM, SplitSGD, VSAMPaper
from qat_vsam.quant import QuantSpec, calibrate, param_groups, prepare

STEPS = 20
ROWS = 8
Build = Callable[[], nn.Module]
Wrap = Callable[[nn.Module], nn.Module]


PUBLISHED = {"warmup_steps": 4, "window": 6, "blocks": 3}
MEMBERS: dict[str, tuple[type, dict[str, Any]]] = {
    "sam": (SAM, {}),
    "vsam-budget": (VSAM, {"gradient_budget": 1.25, "share": 0.5, "reuse": 0.7}),
    "vsam-default": (VSAM, {}),
    "vsam-rise": (VSAM, {"gradient_budget": 1.25, "perturbation": "loss_increase", "largest_rise": None}),
    "vsam-ascend-part": (VSAM, {"method": "ascend_part"}),
    "vsam-paper": (VSAMPaper, PUBLISHED),
    "asam": (ASAM, {}),
    "looksam": (LookSAM, {"interval": 3}),
    "ae-sam": (AESAM, {"total_steps": STEPS}),
    "fsam": (FSAM, {}),
    "msam": (MSAM, {}),
    "s2-sam": (S2SAM, {}),
    "random-sam": (RandomSAM, {}),
}
# Each rank picks among its own rows: those that one process picks only where all are picked.
SELECTING = {"esam": (ESAM, {"share": 1.0})}
QUANTIZED: dict[str, tuple[type, dict[str, Any]]] = {
    "euclidean": (SAM, {}),
    "step-size": (SAM, {"perturbation": "step_size"}),
    "post-quantizer": (SAM, {"perturbation": "post_quantizer"}),
    "saq": (SAQ, {}),
    "vsam-post-quantizer": (VSAM, {"perturbation": "post_quantizer"}),
}


class Task:
    """A network and the batches of this rank: every second row of those that one process sees.

    So the part that a method cuts off the union of the batches is the union of the parts.
    """

    def __init__(self, build: Build, wrap: Wrap | None = None, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(STEPS, 2 * ROWS, 5, generator=generator, dtype=torch.float64)
        self.y = torch.randint(0, 3, (STEPS, 2 * ROWS), generator=generator)
        if wrap is not None:
            self.x, self.y = self.x[:, dist.get_rank() :: 2], self.y[:, dist.get_rank() :: 2]
        torch.manual_seed(seed)
        self.plain = build()
        self.model = wrap(self.plain) if wrap is not None else self.plain
        self.turn = 0
        self.calls = 0

    def optimizer(self, member: type, **options: Any) -> Any:
        quantized = any(hasattr(layer, "weight_offset") for layer in self.plain.modules())
        groups = param_groups(self.plain) if quantized else self.plain.parameters()
        usual = {"model": self.model, "lr": 0.1, "momentum": 0.9} | ({} if member is SplitSGD else {"rho": 0.1})
        return member(groups, torch.optim.SGD, **usual | options)

    def step(self, optimizer: Any, size: int = 2 * ROWS) -> None:
        """One step on the first `size` rows of the batch whose turn it is."""
        x, y = self.x[self.turn % STEPS][:size], self.y[self.turn % STEPS][:size]
        self.turn += 1

        def closure(rows: Any = slice(None), backward: bool = True) -> Any:
            self.calls += 1
            optimizer.zero_grad()
            losses = F.cross_entropy(self.model(x[rows]), y[rows], reduction="none")
            if backward:
                losses.mean().backward()
            return (losses.mean(), losses.detach()) if optimizer.method.needs_row_losses else losses.mean()

        optimizer.step(closure, batch_size=len(x))

    def weights(self) -> Tensor:
        return torch.cat([whole(p.detach()).flatten() for p in self.plain.parameters()])


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def quantized_net() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    prepare(model, QuantSpec.preset("w4a4"))
    calibrate(model, [torch.randn(64, 5, generator=torch.Generator().manual_seed(2))])
    return model.double()


def sharded(model: nn.Module) -> nn.Module:
    """The first layer by itself, the others with the outermost module, which stays whole after a forward pass."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same_on_all_ranks(value: Any) -> bool:
    told: list[Any] = [None] * dist.get_world_size()
    if isinstance(value, Tensor):
        told = [torch.empty_like(value) for _ in told]
        dist.all_gather(told, value)
        return all(torch.equal(value, other) for other in told)
    dist.all_gather_object(told, value)
    return all(value == other for other in told)


def rank_twin(reused: bool) -> Tensor:
    """Per-rank SAM, or VSAM's part method at a budget of 1.25, in one process and step by step."""
    task = Task(small_net)
    weights = list(task.plain.parameters())
    momentum = [torch.zeros_like(w) for w in weights]
    h = [torch.zeros_like(w) for w in weights]

    def gradient(turn: int, rank: int, rows: slice) -> list[Tensor]:
        x, y = task.x[turn, rank::2][rows], task.y[turn, rank::2][rows]
        return list(torch.autograd.grad(nn.functional.cross_entropy(task.plain(x), y), weights))

    def mean(sets: list[list[Tensor]]) -> list[Tensor]:
        return [(a + b) / 2 for a, b in zip(*sets, strict=True)]

    for turn in range(STEPS):
        pays = not reused or turn % 2 == 1
        everything, part, rest = slice(None), slice(0, 4) if reused else slice(None), slice(4, None)
        if pays:
            first = [gradient(turn, rank, part) for rank in range(2)]
            displaced = []
            for rank, g in enumerate(first):
                norm = torch.cat([gi.flatten() for gi in g]).norm()
                kept = [w.detach().clone() for w in weights]
                with torch.no_grad():
                    for w, gi in zip(weights, g, strict=True):
                        w.add_(0.1 * gi / (norm + 1e-12))
                displaced.append(gradient(turn, rank, part))
                with torch.no_grad():
                    for w, k in zip(weights, kept, strict=True):
                        w.copy_(k)
            h = [s - g for s, g in zip(mean(displaced), mean(first), strict=True)]
            at_w = mean(first)
            if reused:
                at_w = mean([at_w, mean([gradient(turn, rank, rest) for rank in range(2)])])
            step = [g + hi for g, hi in zip(at_w, h, strict=True)]
        else:
            plain = mean([gradient(turn, rank, everything) for rank in range(2)])
            step = [g + 0.7 * hi for g, hi in zip(plain, h, strict=True)]
        with torch.no_grad():
            for w, v, g in zip(weights, momentum, step, strict=True):
                v.mul_(0.9).add_(g)
                w.sub_(0.1 * v)
    return task.weights()


WRAPPERS: dict[str, Wrap] = {"ddp": DistributedDataParallel, "fsdp": sharded}
