r"""What a step computes, and on which rows of the batch.

    Part         g_A at w;  h = (A's gradient at w + e) - g_A;  g_B at w;  step with q g_A + (1 - q) g_B + c h
    AscendPart   g_A at w;                                                 step with the batch's at w + e
    Selected     g at w;  losses at w + e;            step with the gradient at w + e of the rows that rose most
    Lookahead                                         step with the batch's at w + e,  e from earlier steps
    Split        g_A at w;  g_B at w;                                      step with q g_A + (1 - q) g_B

A is the part of share q, B the rest, and e lies along g_A; `psf.beyond_rounding` gives c. With q = 1 the first two
are SAM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from qat_vsam.errors import InputError, explain
from qat_vsam.optim.gradients import Gradients, difference, mixture, total
from qat_vsam.optim.psf import beyond_rounding
from qat_vsam.optim.rows import Rows
from qat_vsam.optim.schedule import check_share


@dataclass(frozen=True)
class Evaluation:
    """One call of the closure.

    Args:
        loss: The mean loss, detached.
        gradients: What it left in `.grad`.
        weight: The weight of its rows, if the closure gave one.
        losses: The loss of each row, if the closure gave them.
        own: Whether the gradients are this rank's alone, good for nothing but e.
    """

    loss: Tensor
    gradients: Gradients
    weight: float | Tensor | None = None
    losses: Tensor | None = None
    own: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a step comes to.

    Args:
        loss: The loss at w.
        gradients: What to step with.
        psf: h, if the method has one.
        paid: What it paid for gradients at displaced weights beyond the first gradient, in gradients of the
            whole batch; 0 if the schedule declined after a look at the gradient.
    """

    loss: Tensor
    gradients: Gradients
    psf: Gradients | None = None
    paid: float = 0.0


RowsChosen: TypeAlias = slice | Tensor | None
# Called at the displaced weights with the first evaluation and a function that gives the losses there.
ChooseRows: TypeAlias = Callable[[Evaluation, Callable[[], Tensor]], Tensor]


class Passes(Protocol):
    """The evaluations that a method composes; all counted by the optimizer."""

    @property
    def uphill(self) -> float:
        """1, or -1 where all parameters are to maximize the loss."""

    def at_weights(self, rows: slice | None, moves_statistics: bool = True) -> Evaluation:
        """Loss and gradients at w."""

    def ascend(
        self, rows: slice | None, rows_displaced: slice | ChooseRows | None, moves_statistics: bool = True
    ) -> tuple[Evaluation, Evaluation | None]:
        """At w on `rows`, then at w + e on `rows_displaced`; e lies along the first gradient.

        The second is None if the schedule declines after a look at the first.
        """

    def look_ahead(self) -> Evaluation:
        """On the whole batch at w + e, where e lies along what is remembered from earlier steps."""

    def agreed(self, share: float | Tensor) -> float | Tensor:
        """The mean of a share over the ranks."""


class Method(ABC):
    """Base of the methods.

    Attributes:
        perturbs: Whether weights are displaced at all.
        ascends: Whether a step that pays begins with a gradient at w and makes a second pass at w + e.
        cuts: Whether the batch is cut into part and rest.
        needs_row_losses: Whether the closure must return the losses of the rows too.
        uses_first: Whether the gradient at w enters the step itself, or h.
    """

    perturbs = True
    ascends = True
    cuts = True
    needs_row_losses = False
    uses_first = False

    def cost_of_payment(self, share: float) -> float:
        """What a step that pays costs beyond one gradient, given the schedule's share of the batch."""
        return share

    @abstractmethod
    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        """Carry the step out."""


class Part(Method):
    """The second gradient on part of the batch. Cost 1 + q.

    Of h the step takes what is more than the noise of rounding, for the part's gradient at w is not the batch's, and
    its noise does not cancel. On the whole batch it does: there the step is made with the gradient at w + e.
    """

    uses_first = True

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        part, displaced = passes.ascend(rows.part, rows.part, moves_statistics=rows.part_moves)
        paid = rows.share if displaced else 0.0
        if rows.rest is None:
            psf = difference(displaced.gradients, part.gradients) if displaced and not part.own else None
            return Outcome(part.loss, displaced.gradients if displaced else part.gradients, psf, paid)
        psf = beyond_rounding(part.gradients, displaced.gradients) if displaced else None
        del displaced
        loss, mixed = _with_rest(part, passes, rows)
        return Outcome(loss, total(mixed, psf) if psf else mixed, psf, paid)


class AscendPart(Method):
    """The ascent along part of the batch, one gradient of the whole batch at w + e. Cost 1 + q.

    The whole batch is never seen at w. So the loss returned is the part's, running statistics move with the
    part, and there is no h to keep.
    """

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        part, displaced = passes.ascend(rows.part, None)
        if displaced is not None:
            return Outcome(part.loss, displaced.gradients, paid=rows.share)
        whole = passes.at_weights(None, moves_statistics=False)
        return Outcome(whole.loss, whole.gradients)


class Selected(Method):
    """The second gradient on the rows whose loss rises most from w to w + e. Cost 1 + share, and a forward pass.

    The closure returns (mean loss, losses of the rows), takes `rows` as a tensor of row numbers too, and does
    not call backward if called with `backward=False`.

    Args:
        share: Of the batch, that is selected; at least 2 rows.

    Raises:
        ConfigError: share outside (0, 1].

    Reference: arXiv 2110.03141.
    """

    cuts = False
    needs_row_losses = True

    def __init__(self, share: float = 0.5) -> None:
        self.share = check_share(share)

    def cost_of_payment(self, share: float) -> float:
        return self.share

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        chosen: list[float] = []

        def most_risen(first: Evaluation, losses_there: Callable[[], Tensor]) -> Tensor:
            if first.losses is None:
                raise InputError(
                    explain("closure", "one loss", "(mean loss, losses of the rows)", "return loss, losses.detach()")
                )
            rise = passes.uphill * (losses_there() - first.losses)
            count = min(max(int(self.share * len(rise)), 2), len(rise))
            chosen.append(count / len(rise))
            # Where nothing is displaced all rows tie; topk would leave the choice to the device.
            return torch.sort(rise, descending=True, stable=True).indices[:count]

        first, displaced = passes.ascend(None, most_risen)
        if displaced is None:
            return Outcome(first.loss, first.gradients)
        return Outcome(first.loss, displaced.gradients, paid=chosen[0])


class Lookahead(Method):
    """One gradient, of the whole batch, at weights displaced along what earlier steps left. Cost 1.

    The batch is never seen at w: loss and running statistics are those of the displaced weights.
    """

    ascends = False
    cuts = False

    def cost_of_payment(self, share: float) -> float:
        return 0.0

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        ahead = passes.look_ahead()
        return Outcome(ahead.loss, ahead.gradients)


class Split(Method):
    """No second gradient: the batch is only cut, as `Part` cuts it. Cost 1."""

    perturbs = False
    ascends = False

    def cost_of_payment(self, share: float) -> float:
        return 0.0

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        part = passes.at_weights(rows.part, moves_statistics=rows.part_moves)
        if rows.rest is None:
            return Outcome(part.loss, part.gradients)
        return Outcome(*_with_rest(part, passes, rows))


def _with_rest(part: Evaluation, passes: Passes, rows: Rows) -> tuple[Tensor, Gradients]:
    """Loss and gradient of the whole batch at w, given those of the part."""
    rest = passes.at_weights(rows.rest, moves_statistics=rows.rest_moves)
    share = passes.agreed(_weight_share(part, rest, rows))
    loss = share * part.loss + (1 - share) * rest.loss
    return loss, mixture(part.gradients, rest.gradients, share)


def _weight_share(part: Evaluation, rest: Evaluation, rows: Rows) -> float | Tensor:
    if part.weight is None or rest.weight is None:
        return rows.rows_share
    return part.weight / (part.weight + rest.weight)
