"""The colours of a page and its figures: each named once, with its value by day and by night."""

from __future__ import annotations

import re

COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#12171d"),
    "soft": ("#f4f6f8", "#1a2129"),
    "line": ("#dce2e7", "#303a44"),
    "ink": ("#1b2630", "#e3e8ec"),
    "muted": ("#586570", "#9eaab5"),
    "grey": ("#8b969f", "#7d8994"),
    "accent": ("#0a5fbf", "#72b4ff"),
    "band": ("#e2edf9", "#1b3049"),
    "good": ("#08704a", "#63d29c"),
    "bad": ("#a83a0b", "#ff9f70"),
    "warning": ("#fdf3df", "#3a2d14"),
}

# what stands for a method; one accent, and greys for what it is measured against
ROLES = {
    "vsam": "accent",
    "sam": "ink",
    "sgd": "grey",
    "split_sgd": "grey",
    "other": "muted",
    "post_training": "grey",
    "float_reference": "grey",
}
# controls and nets that were not trained have marks that are not filled
HOLLOW = ("split_sgd", "post_training", "float_reference")


def css_variables() -> str:
    """The colours as CSS variables that follow the page's colour scheme."""
    lines = [f"--{name}: light-dark({day}, {night});" for name, (day, night) in COLOURS.items()]
    return " ".join(lines)


def by_day(css: str) -> str:
    """A style sheet whose variables are replaced by the colours of the day, for a figure in a file of its own.

    Example:
        >>> by_day("text { fill: var(--ink); }")
        'text { fill: #1b2630; }'
    """
    return re.sub(r"var\(--(\w+)\)", lambda match: COLOURS[match[1]][0], css)


def role_class(role: str) -> str:
    """The CSS class of a role's marks.

    Example:
        >>> role_class("split_sgd")
        'role-split-sgd'
    """
    return "role-" + (role if role in ROLES else "other").replace("_", "-")
