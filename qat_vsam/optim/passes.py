"""The evaluations of one step: at the weights, at displaced weights, counted, and all put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qat_vsam.errors import InputError, explain
from qat_vsam.optim.caches import forget_weights
from qat_vsam.optim.distributed import copy_into
from qat_vsam.optim.gradients import Gradients, global_norm, take
from qat_vsam.optim.methods import ChooseRows, Evaluation, RowsChosen
from qat_vsam.optim.points import Point
from qat_vsam.optim.stillness import RandomState, standing_still

if TYPE_CHECKING:
    from qat_vsam.optim.sharpness_aware import SharpnessAware


class StepPasses:
    """Carries the evaluations of one step out. Weights, and what must stand still, are left as they were.

    Attributes:
        forwards: Calls of the closure so far.
        evaluations: Gradients so far, each weighted by its share of the batch.
        slopes: The gradients at the points, by parameter, if the perturbation remembers them.
        measured_norm: |g| over the tensors that the schedule measures.
        gradient_norm: |g|, if the schedule looks at it.
        norms: Of each pass, if losses are scaled.
    """

    def __init__(self, optimizer: SharpnessAware, closure: Callable[..., Any], batch_size: int | None) -> None:
        self.optimizer = optimizer
        self.closure = closure
        self.batch_size = batch_size
        self.forwards = 0
        self.evaluations = 0.0
        self.slopes: Gradients = {}
        self.measured_norm: Tensor | None = None
        self.gradient_norm: float | None = None
        self.norms: list[Tensor] = []

    def plain(self) -> Evaluation:
        """The whole batch at w, on a step that does not pay."""
        evaluation = self._evaluate(None)
        self._look_at(evaluation.gradients)
        if self.optimizer.perturbation.direction.remembers == "slopes":
            own = self.optimizer.perturbation.radii(self.optimizer.param_groups)
            self.slopes = {p: g.clone() for p, g in evaluation.gradients.items() if p in own}
        return evaluation

    def at_weights(self, rows: slice | None, moves_statistics: bool = True) -> Evaluation:
        """Loss and gradients at w on these rows (None: the whole batch)."""
        with nullcontext() if moves_statistics else standing_still(self.optimizer.model):
            return self._evaluate(rows)

    def ascend(
        self, rows: slice | None, rows_displaced: slice | ChooseRows | None, moves_statistics: bool = True
    ) -> tuple[Evaluation, Evaluation | None]:
        """At w on `rows`, then at w + e on `rows_displaced`, where e lies along the first gradient."""
        optimizer, perturbation = self.optimizer, self.optimizer.perturbation
        # Masks can only be the same where the rows are.
        keep = optimizer.dropout == "keep" and (rows == rows_displaced or callable(rows_displaced))
        random = RandomState(optimizer.parameters()) if keep else None
        with perturbation.points(optimizer.param_groups, optimizer.model) as points:
            offsets = [point.tensor for point in points if point.temporary]
            with (
                nullcontext() if moves_statistics else standing_still(optimizer.model),
                optimizer.ranks.unsynchronised(),
            ):
                first, at_offsets = self._evaluate_with(offsets, rows)
            own = {**first.gradients, **at_offsets}
            if optimizer.ranks.apart:
                first, at_offsets = self._averaged(first, at_offsets, cut=rows is not None)
            slopes = {**first.gradients, **at_offsets}
            if optimizer.schedule.norm_tensors is not None:
                self.measured_norm = optimizer.measured(first.gradients)
            if perturbation.direction.remembers == "slopes":
                self.slopes = {p.parameter: slopes[p.tensor] for p in points if p.tensor in slopes}
            if self._look_at(first.gradients) and not optimizer.pays_at(self.gradient_norm):
                # The step is made with these gradients, and what is reused is added to them in place.
                self.slopes = {p: g.clone() for p, g in self.slopes.items()}
                return first, None
            loss = first.loss
            if perturbation.radius.reads_loss and not optimizer.ranks.apart:
                loss = torch.as_tensor(self.agreed(loss))
            displacements = perturbation.displacements(points, own, optimizer.state, optimizer.steps, loss)
            moved = [point.parameter for point in displacements]
            del own, slopes, at_offsets
            with (
                _displaced(displacements),
                standing_still(optimizer.model),
                random.replayed() if random is not None else nullcontext(),
            ):
                chosen: RowsChosen = rows_displaced(first, self._losses) if callable(rows_displaced) else rows_displaced
                second = self._evaluate(chosen)
        if moved and rows == rows_displaced:
            reads = optimizer.monitor.looks(optimizer.steps, moved[0].device)
            optimizer.witness.compare(first, second, moved, reads)
        return first, second

    def look_ahead(self) -> Evaluation:
        """On the whole batch at w + e, where e lies along what is remembered from earlier steps."""
        optimizer, perturbation = self.optimizer, self.optimizer.perturbation
        with perturbation.points(optimizer.param_groups, optimizer.model) as points:
            for point in points:
                if point.temporary:
                    point.tensor.requires_grad_(False)
            displacements = perturbation.displacements(points, {}, optimizer.state, optimizer.steps)
            with _displaced(displacements):
                return self._evaluate(None)

    @property
    def uphill(self) -> float:
        """1, or -1 where all parameters are to maximize the loss."""
        return -1.0 if all(group.get("maximize") for group in self.optimizer.param_groups) else 1.0

    def agreed(self, share: float | Tensor) -> float | Tensor:
        """The mean of a share over the ranks: what is mixed by it is a mean over the ranks too."""
        return self.optimizer.ranks.mean(share, next(self.optimizer.parameters()))

    def _averaged(self, first: Evaluation, at_offsets: Gradients, cut: bool) -> tuple[Evaluation, Gradients]:
        """What a rank's own pass gave, averaged over the ranks where more than e depends on it."""
        optimizer = self.optimizer
        schedule, remembers = optimizer.schedule, optimizer.perturbation.direction.remembers == "slopes"
        used = optimizer.method.uses_first and (cut or optimizer.psf.gamma > 0)
        if not (used or remembers or schedule.looks_at_gradient or schedule.norm_tensors is not None):
            return replace(first, own=True), at_offsets
        # A copy, for e still lies along the rank's own; zero where a rank has none, for all must send alike.
        gradients = {
            p: first.gradients[p].clone() if p in first.gradients else torch.zeros_like(p)
            for p in optimizer.parameters()
            if p.requires_grad
        }
        there = {offset: slope.clone() for offset, slope in at_offsets.items()} if remembers else {}
        optimizer.ranks.average([*gradients.values(), *there.values()])
        return replace(first, gradients=gradients), there

    def _look_at(self, gradients: Gradients) -> bool:
        if not self.optimizer.schedule.looks_at_gradient:
            return False
        self.gradient_norm = float(global_norm(list(gradients.values())))
        return True

    def _evaluate(self, rows: RowsChosen) -> Evaluation:
        evaluation, _ = self._evaluate_with((), rows)
        return evaluation

    def _evaluate_with(self, offsets: Sequence[Tensor], rows: RowsChosen) -> tuple[Evaluation, Gradients]:
        for tensor in self.optimizer.parameters():
            tensor.grad = None
        forget_weights()
        with torch.enable_grad():
            result = self.closure() if rows is None else self.closure(rows)
        self.forwards += 1
        self.evaluations += 1.0 if rows is None or not self.batch_size else _count(rows) / self.batch_size
        loss, further = result if isinstance(result, tuple) else (result, None)
        if not isinstance(loss, Tensor | float | int):
            raise InputError(explain("closure", f"{loss!r} returned", "the loss", "end the closure with return loss"))
        for offset in offsets if self.optimizer.ranks.several else ():
            # All ranks must send alike, also where one has not reached a layer.
            offset.grad = torch.zeros_like(offset) if offset.grad is None else offset.grad
        gradients, at_offsets = take(self.optimizer.parameters()), take(offsets)
        if not self.optimizer.ranks.apart:
            # Offsets are no parameters: the wrapper does not know of them.
            self.optimizer.ranks.average(list(at_offsets.values()))
        if self.optimizer.loss_scale is not None:
            self.norms.append(self.optimizer.loss_scale.unscale([*gradients.values(), *at_offsets.values()]))
        losses = further.detach() if isinstance(further, Tensor) and further.dim() == 1 else None
        if losses is not None and rows is None:
            self.batch_size = len(losses)
        weight = further if losses is None else None
        return Evaluation(torch.as_tensor(loss).detach(), gradients, weight, losses), at_offsets

    def _losses(self) -> Tensor:
        """The loss of each row at the weights as they stand, by a forward pass alone."""
        forget_weights()
        _, losses = self.closure(slice(None), backward=False)
        self.forwards += 1
        detached: Tensor = losses.detach()
        return detached


def _count(rows: slice | Tensor) -> int:
    return len(rows) if isinstance(rows, Tensor) else int(rows.stop - rows.start)


@contextmanager
def _displaced(displacements: dict[Point, Tensor]) -> Iterator[None]:
    """Within the context the points stand at their value + e; afterwards exactly at their value again."""
    if not displacements:
        yield
        return
    tensors = [point.tensor for point in displacements]
    lasting = [point.tensor for point in displacements if not point.temporary]
    kept = [torch.empty_like(tensor) for tensor in lasting]
    copy_into(kept, lasting)
    try:
        torch._foreach_add_(tensors, list(displacements.values()))
        # e is as large as the weights; the second pass needs that memory.
        displacements.clear()
        yield
    finally:
        copy_into(lasting, kept)
        forget_weights()
