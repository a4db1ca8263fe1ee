"""A small SVG writer: lines, marks and selectable text, styled by classes so that a page's colour scheme rules them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from qat_vsam.report.page.palette import HOLLOW, ROLES, by_day, role_class

# beyond these a mark is the same for every eye, and the files would only grow
_DIGITS = 1


def element(name: str, content: str = "", *, title: str = "", **attributes: object) -> str:
    """One SVG element.

    Args:
        name: its tag.
        content: markup inside it, already escaped.
        title: what a pointer that rests on it shows.
        attributes: `cls` is the class, underscores become hyphens, numbers are rounded, None is left out.

    Example:
        >>> element("circle", title="a < b", cx=1.26, r=3, cls="mark")
        '<circle cx="1.3" r="3" class="mark"><title>a &lt; b</title></circle>'
    """
    pairs = [
        (key.replace("cls", "class").replace("_", "-"), value) for key, value in attributes.items() if value is not None
    ]
    text = "".join(f' {key}="{_plain(value)}"' for key, value in pairs if value != "")
    inside = (f"<title>{escape(title)}</title>" if title else "") + content
    return f"<{name}{text}>{inside}</{name}>" if inside else f"<{name}{text}/>"


def text(x: float, y: float, words: str, *, cls: str = "", anchor: str | None = None, title: str = "") -> str:
    """A line of text that a reader can select; `y` is its baseline, `anchor` is "middle" or "end"."""
    return element("text", escape(words), title=title, x=x, y=y, cls=cls, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, cls=cls)


def polyline(points: list[tuple[float, float]], cls: str) -> str:
    """A line through points."""
    return element("polyline", points=" ".join(f"{_plain(x)},{_plain(y)}" for x, y in points), cls=cls)


def mark(x: float, y: float, shape: str, cls: str, size: float = 4.5) -> str:
    """A mark of one of `SHAPES`, of equal area to the eye."""
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=size, cls=cls)
    corners = " ".join(f"{_plain(x + size * dx)},{_plain(y + size * dy)}" for dx, dy in SHAPES[shape])
    return element("polygon", points=corners, cls=cls)


SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.25), (1.15, 0.85), (-1.15, 0.85)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    "downwards": ((0, 1.25), (1.15, -0.85), (-1.15, -0.85)),
}


@dataclass
class Drawing:
    """A drawing that grows by `add`; its size is in CSS pixels."""

    width: float
    height: float
    label: str
    parts: list[str] = field(default_factory=list)

    def add(self, *parts: str) -> None:
        """Puts elements on top of those that are there."""
        self.parts.extend(parts)

    def inline(self, cls: str = "") -> str:
        """For a page, whose style sheet holds `figure_css()`."""
        return self._svg(cls=cls, body="".join(self.parts))

    def standalone(self) -> str:
        """For a file: with its own colours, on white."""
        ground = element("rect", width=self.width, height=self.height, fill="#ffffff")
        style = f"<style>{by_day(figure_css())}</style>"
        drawn = self._svg(xmlns="http://www.w3.org/2000/svg", body=style + ground + "".join(self.parts))
        return drawn + "\n"

    def _svg(self, *, body: str, cls: str = "", xmlns: str | None = None) -> str:
        box = f"0 0 {_plain(self.width)} {_plain(self.height)}"
        return element(
            "svg",
            body,
            cls=f"figure {cls}".strip(),
            xmlns=xmlns,
            viewBox=box,
            width=self.width,
            height=self.height,
            role="img",
            aria_label=escape(self.label),
        )


def figure_css() -> str:
    """The style of figures, in the page's colour variables."""
    rules = [files("qat_vsam.report").joinpath("templates/figure.css").read_text(encoding="utf-8")]
    for role, colour in ROLES.items():
        cls = role_class(role)
        fill = "paper" if role in HOLLOW else colour
        rules.append(f".{cls} .mark {{ fill: var(--{fill}); stroke: var(--{colour}); }}\n")
        rules.append(f".{cls} .spread {{ fill: var(--{colour}); }}\n")
        rules.append(f".{cls} .whisker, .{cls} .curve {{ stroke: var(--{colour}); }}\n")
    return "".join(rules)


def _plain(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    rounded = round(value, _DIGITS)
    return str(int(rounded)) if rounded == int(rounded) else str(rounded)
