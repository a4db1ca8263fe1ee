r"""What a step with a second gradient computes, and on which rows of the batch.

    Part         g_A at w;  h = (A's gradient at w + e) - g_A;  g_B at w;  step with q g_A + (1 - q) g_B + h
    AscendPart   g_A at w;                                                 step with the batch's at w + e
    Split        g_A at w;  g_B at w;                                      step with q g_A + (1 - q) g_B

A is the part of share q, B the rest, and e lies along g_A. With q = 1 the first two are SAM.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from qat_vsam.errors import InputError, explain
from qat_vsam.optim.gradients import Gradients, difference, mixture, total


@dataclass(frozen=True)
class Rows:
    """A batch cut in two.

    Args:
        part: The rows of the part; None for the whole batch.
        rest: The others; None if there are none.
        share: Rows of the part over rows of the batch.
    """

    part: slice | None
    rest: slice | None
    share: float

    @staticmethod
    def cut(batch_size: int | None, share: float) -> Rows:
        """The first floor(share * batch_size) rows against the others.

        Both sides hold at least 2 rows (one row has no batch statistics); a batch that is too small for
        that, or of unknown size, is not cut.

        Example:
            >>> Rows.cut(9, 0.5)
            Rows(part=slice(0, 4, None), rest=slice(4, 9, None), share=0.4444444444444444)
            >>> Rows.cut(3, 0.5).share
            1.0
        """
        if batch_size is None:
            return Rows(None, None, 1.0)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(explain("batch_size", batch_size, "a number of rows >= 1", "pass len(x)"))
        size = int(share * batch_size)
        if size < 2 or batch_size - size < 2:
            return Rows(None, None, 1.0)
        return Rows(slice(0, size), slice(size, batch_size), size / batch_size)

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
    """One call of the closure: the loss, its weight if the closure gave one, and the gradients it left."""

    loss: Tensor
    weight: float | Tensor | None
    gradients: Gradients


@dataclass(frozen=True)
class Outcome:
    """What a step comes to: the loss at w, the gradients to step with, and h if the method has one."""

    loss: Tensor
    gradients: Gradients
    psf: Gradients | None = None


class Passes(Protocol):
    """The evaluations that a method composes; all counted by the optimizer."""

    def at_weights(self, rows: slice | None, moves_statistics: bool = True) -> Evaluation:
        """Loss and gradients at w."""

    def ascend(
        self, rows: slice | None, rows_displaced: slice | None, moves_statistics: bool = True
    ) -> tuple[Evaluation, Evaluation]:
        """At w on `rows`, then at w + e on `rows_displaced`; e lies along the first gradient."""


class Method(ABC):
    """Base of the methods.

    Attributes:
        perturbs: Whether it takes a second gradient at all; without, a step costs one gradient.
    """

    perturbs = True

    @abstractmethod
    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        """Carry the step out."""


class Part(Method):
    """The second gradient on part of the batch. Cost 1 + q."""

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        # Running statistics move once a step, and the larger part knows them better.
        part_moves = rows.rest is None or rows.share > 0.5
        part, displaced = passes.ascend(rows.part, rows.part, moves_statistics=part_moves)
        psf = difference(displaced.gradients, part.gradients)
        if rows.rest is None:
            return Outcome(part.loss, displaced.gradients, psf)
        del displaced
        rest = passes.at_weights(rows.rest, moves_statistics=not part_moves)
        share = _weight_share(part, rest, rows)
        mixed = mixture(part.gradients, rest.gradients, share)
        return Outcome(_mixed_loss(part, rest, share), total(mixed, psf), psf)


class AscendPart(Method):
    """The ascent along part of the batch, one gradient of the whole batch at w + e. Cost 1 + q.

    The whole batch is never seen at w. So the loss returned is the part's, running statistics move with the
    part, and there is no h to keep.
    """

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        part, displaced = passes.ascend(rows.part, None)
        return Outcome(part.loss, displaced.gradients)


class Split(Method):
    """No second gradient: the batch is only cut, as `Part` cuts it. Cost 1."""

    perturbs = False

    def __call__(self, passes: Passes, rows: Rows) -> Outcome:
        part_moves = rows.rest is None or rows.share > 0.5
        part = passes.at_weights(rows.part, moves_statistics=part_moves)
        if rows.rest is None:
            return Outcome(part.loss, part.gradients)
        rest = passes.at_weights(rows.rest, moves_statistics=not part_moves)
        share = _weight_share(part, rest, rows)
        return Outcome(_mixed_loss(part, rest, share), mixture(part.gradients, rest.gradients, share))


def _weight_share(part: Evaluation, rest: Evaluation, rows: Rows) -> float | Tensor:
    if part.weight is None or rest.weight is None:
        return rows.share
    return part.weight / (part.weight + rest.weight)


def _mixed_loss(part: Evaluation, rest: Evaluation, share: float | Tensor) -> Tensor:
    return share * part.loss + (1 - share) * rest.loss
