"""The cells of tables: text for page and summary alike, and the number that sorts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qat_vsam.report import formats
from qat_vsam.report.formats import DASH, interval, signed
from qat_vsam.report.statistics import Estimate

# the tone in which a word of a verdict is set
TONES = {"better": "good", "equivalent": "accent", "worse": "bad"}


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a word that judges it, smaller print below, and what it is sorted by."""

    text: str
    small: tuple[str, ...] = ()
    word: str = ""
    sort: float | str | None = None

    @property
    def tone(self) -> str:
        """ "good", "bad", "accent" or "": how the word is set."""
        return TONES.get(self.word, "")

    @property
    def line(self) -> str:
        """All of it in one line, as in the summary.

        Example:
            >>> Cell("96.26", ("[96.07, 96.44]", "p = 0.010")).line
            '96.26 [96.07, 96.44]; p = 0.010'
        """
        first, *rest = [part for part in (*self.small, self.word) if part] or [""]
        if first.startswith("["):
            return "; ".join([f"{self.text} {first}", *rest])
        return "; ".join(part for part in (self.text, first, *rest) if part)


EMPTY = Cell(DASH)


def estimate(value: Estimate | None, *, digits: int = 2, plus: bool = False, word: str = "", p: str = "") -> Cell:
    """An estimate with its interval; where there is none, why."""
    if value is None:
        return EMPTY
    if value.value is None:
        return Cell(DASH, (value.note,) if value.note else ())
    text = signed(value.value, digits) if plus else f"{value.value:.{digits}f}".replace("-", formats.MINUS)
    ends = value.note if value.low is None else interval(value, digits, plus)
    return Cell(text, tuple(part for part in (ends, p) if part), word, value.value)


def percentage(value: Estimate | None) -> Cell:
    """A share with its interval, in whole per cent."""
    if value is None or value.value is None:
        return estimate(value)
    ends = value.note if value.low is None else interval(value, 0, False, 100)
    return Cell(formats.share(value.value), (ends,) if ends else (), sort=value.value)


def number(value: float | None, digits: int = 2, note: str = "") -> Cell:
    """A plain number, or a dash and why there is none."""
    if value is None:
        return Cell(DASH, (note,)) if note else EMPTY
    return Cell(f"{value:.{digits}f}", (note,) if note else (), sort=value)


def words(value: str | None, small: Sequence[str] = ()) -> Cell:
    """A text."""
    return Cell(value, tuple(small), sort=value.lower()) if value else EMPTY


def byte_count(value: int | None, small: Sequence[str] = ()) -> Cell:
    """The size of a file."""
    return EMPTY if value is None else Cell(formats.size(value), tuple(small), sort=float(value))
