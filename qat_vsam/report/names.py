"""How bit widths are written, and what is left of a name without one."""

from __future__ import annotations

import re

FLOAT = "float32"


def precision_label(precision: str) -> str:
    """How a bit width is written: W4A4, Float32."""
    return precision.capitalize() if precision == FLOAT else precision.upper()


def without_precision(text: str, precision: str) -> str:
    """A name or label without its bit width.

    Example:
        >>> without_precision("W4A4 VSAM", "w4a4"), without_precision("w4a4-split_sgd", "w4a4")
        ('VSAM', 'split-sgd')
    """
    words = {precision, "float", "fp32"} if precision == FLOAT else {precision}
    pattern = "|".join(rf"\b{re.escape(word)}\b" for word in sorted(words, key=len, reverse=True))
    rest = re.sub(pattern, "", text.replace("_", "-"), count=1, flags=re.IGNORECASE)
    return re.sub(r"\s{2,}", " ", rest).strip(" -,:") or text
