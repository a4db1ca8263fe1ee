"""How a batch is cut in two, and which of its passes moves running statistics."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from qat_vsam.errors import InputError, explain


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
