"""Text for summary.md and README.md: shown as it is, and readable before it is rendered too."""

from __future__ import annotations

import re


def escape(value: object, first: bool = False) -> str:
    r"""Text that Markdown shows as it is: no HTML, no links, no table bars, no line breaks.

    Only what must be escaped is, so that the raw text can be read.

    Args:
        value: shown by its `str`.
        first: whether it begins a paragraph, where some signs would make a heading, a list or a quotation of it.

    Example:
        >>> escape("a|b <script>; p < 0.001")
        'a\\|b &lt;script>; p < 0.001'
    """
    plain = " ".join(str(value).split()).replace("\\", "\\\\")
    for sign in ("|", "`", "*"):
        plain = plain.replace(sign, "\\" + sign)
    # an underscore inside a word is one
    plain = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", plain)
    plain = re.sub(r"\](?=[(\[:])", r"\\]", plain)
    plain = re.sub(r"&(?=#?\w+;)", "&amp;", plain)
    plain = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", plain)
    return re.sub(r"^(\d*)(?=[#>+=.)-])", r"\1\\", plain) if first else plain


def code(value: object) -> str:
    """Text in a fixed-width face, whatever backticks it holds.

    Example:
        >>> code("qat-vsam compare digits"), code("a `b`")
        ('`qat-vsam compare digits`', '`` a `b` ``')
    """
    # a bar would end the cell of a table even here
    plain = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", plain)), default=0) + 1)
    return f"{fence} {plain} {fence}" if len(fence) > 1 else f"`{plain}`"
