r"""What a step computes, and on which rows of the batch.

    Part         g_A at w;  h = (A's gradient at w + e) - g_A;  g_B at w;  step with q g_A + (1 - q) g_B + h
    AscendPart   g_A at w;                                                 step with the batch's at w + e
    Selected     g at w;  losses at w + e;            step with the gradient at w + e of the rows that rose most
    Lookahead                                         step with the batch's at w + e,  e from earlier steps
    Split        g_A at w;  g_B at w;                                      step with q g_A + (1 - q) g_B

A is the part of share q, B the rest, and e lies along g_A. With q = 1 the first two are SAM.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from qat_vsam.errors import InputError, explain
from qat_vsam.optim.gradients import Gradients, difference, mixture, total
from qat_vsam.optim.schedule import check_share


@dataclass(frozen=True)
class Rows:
    """A batch cut in two.

    Args:
        part: The rows of the part; None for the whole batch.
        rest: The others; None if there are none.
        share: Rows of the part over rows of the batch, by which decisions are made.
        separate: Whether the rows are batches of their own, as micro-batches are.
    """

    part: slice | None
    rest: slice | None
    share: float
    separate: bool = field(default=False, repr=False)

    @staticmethod
    def cut(batch_size: int | None, share: float, smallest: int = 2, several: bool = False) -> Rows:
        """The first floor(share * batch_size) rows against the others.

        Both sides hold at least `smallest` rows (one row has no batch statistics); a batch that is too small
        for that, or of unknown size, is not cut. Where one row is enough, the rows are batches of their own.
        Where `several` ranks must take the same passes whatever the size of their batches, `share` stays as
        asked for, and a batch that is too small is used whole for both.

        Example:
            >>> Rows.cut(9, 0.5)
            Rows(part=slice(0, 4, None), rest=slice(4, 9, None), share=0.4444444444444444)
            >>> Rows.cut(3, 0.5).share
            1.0
        """
        if batch_size is None:
            return Rows(None, None, 1.0, smallest == 1)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(explain("batch_size", batch_size, "a number of rows >= 1", "pass len(x)"))
        size = int(share * batch_size)
        part, rest = slice(0, size), slice(size, batch_size)
        if size < smallest or batch_size - size < smallest:
            if not several or share == 1:
                return Rows(None, None, 1.0, smallest == 1)
            part = rest = slice(0, batch_size)
        return Rows(part, rest, share if several else size / batch_size, smallest == 1)

    @property
    def rows_share(self) -> float:
        """Rows of the part over rows of the batch, as they are."""
        return 1.0 if self.part is None or self.rest is None else self.part.stop / self.rest.stop

    @property
    def part_moves(self) -> bool:
        """Whether running statistics move with the part: they move once, and the larger part knows them better."""
        return self.separate or self.rest is None or self.share > 0.5

    @property
    def rest_moves(self) -> bool:
        """Whether running statistics move with the rest."""
        return self.separate or not self.part_moves

    def check(self, closure: Any) -> None:
        """Raise InputError if the batch is cut and the closure does not take rows."""
        if self.part is None:
            return
        try:
            inspect.signature(closure).bind(self.part)
        except TypeError:
            raise InputError(
                explain(
                    "closure",
                    "a function without arguments together with batch_size",
                    "a function of rows: slice",
                    "write `def closure(rows=slice(None))` and use x[rows], y[rows], or leave batch_size out",
                )
            ) from None


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
        cuts: Whether the batch is cut into part and rest.
        needs_row_losses: Whether the closure must return the losses of the rows too.
        uses_first: Whether the gradient at w enters the step itself, or h.
    """

    perturbs = True
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
    """The second gradient on part of the batch. Cost 1 + q."""

    uses_first = True

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        part, displaced = passes.ascend(rows.part, rows.part, moves_statistics=rows.part_moves)
        psf = difference(displaced.gradients, part.gradients) if displaced and not part.own else None
        paid = rows.share if displaced else 0.0
        if rows.rest is None:
            return Outcome(part.loss, displaced.gradients if displaced else part.gradients, psf, paid)
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
            rise = losses_there() - first.losses
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

    cuts = False

    def cost_of_payment(self, share: float) -> float:
        return 0.0

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        ahead = passes.look_ahead()
        return Outcome(ahead.loss, ahead.gradients)


class Split(Method):
    """No second gradient: the batch is only cut, as `Part` cuts it. Cost 1."""

    perturbs = False

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
