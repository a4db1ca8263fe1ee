"""How numbers and names are written: signs, intervals, p-values, sizes, lists."""

from __future__ import annotations

from collections.abc import Iterable

from qat_vsam.report.statistics import Estimate

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, in the typographer's minus; a zero has none.

    Example:
        >>> signed(0.974), signed(-0.001), signed(-0.2) == MINUS + "0.20"
        ('+0.97', '0.00', True)
    """
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def interval(estimate: Estimate, digits: int = 2, plus: bool = True, scale: float = 1.0) -> str:
    """The interval in brackets, or why there is none."""
    if estimate.low is None or estimate.high is None:
        return "no interval: " + estimate.note
    ends = (scale * estimate.low, scale * estimate.high)
    low, high = (signed(end, digits) if plus else f"{end:.{digits}f}".replace("-", MINUS) for end in ends)
    return f"[{low}, {high}]"


def p_text(p_value: float) -> str:
    """A p-value as it is written: three digits, never zero.

    Example:
        >>> p_text(0.0123), p_text(1e-9)
        ('p = 0.012', 'p < 0.001')
    """
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def share(value: float) -> str:
    """A share in whole per cent.

    Example:
        >>> share(0.968)
        '97 %'
    """
    return f"{100 * value:.0f} %".replace("-0 %", "0 %").replace("-", MINUS)


def agreement(value: float | None) -> str:
    """How often two models agree, in per cent; never rounded up to 100.

    Example:
        >>> agreement(0.99999), agreement(1.0)
        ('99.99 %', '100 %')
    """
    if value is None:
        return DASH
    return "100 %" if value == 1 else f"{min(100 * value, 99.99):.2f} %"


def size(count: float | None) -> str:
    """A size in decimal kB or MB."""
    if count is None:
        return DASH
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def spread(counts: Iterable[float]) -> str:
    """From the least to the most of some counts.

    Example:
        >>> spread([300, 300]), spread([500, 20000])
        ('300', '500 to 20,000')
    """
    known = [int(count) for count in counts]
    low, high = min(known), max(known)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def joined(names: Iterable[str]) -> str:
    """Names in a row that can be told apart, whatever signs they hold.

    Example:
        >>> joined(["SGD, twice the epochs", "SAM"])
        '“SGD, twice the epochs”; “SAM”'
    """
    return "; ".join(f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}" for name in names)
