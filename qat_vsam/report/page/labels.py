"""Labels of figures: how wide they are, shortened where they must be, and placed where nothing else stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SIZE = 12.0

# widths in thousandths of the size, as in Helvetica and Arial; wider than most faces of a screen
_WIDTHS = {
    230: "'ijl|",
    290: " !,./:;I[\\]ft()-`r{}",
    380: '"*',
    520: "Jcksvxyz^",
    580: "+<=>~FTZ",
    680: "&ABEKPSVXY",
    740: "CDHNRUw",
    800: "GOQ",
    880: "Mm%",
    1000: "W@",
}
_WIDTH = {sign: width for width, signs in _WIDTHS.items() for sign in signs}
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def text_width(text: str, size: float = SIZE) -> float:
    """About how wide a text is, in pixels, rather too wide than too narrow.

    Example:
        >>> 20 < text_width("VSAM") < 40
        True
    """
    # signs beyond Latin may be as wide as they are high
    return sum(_WIDTH.get(sign, 570 if ord(sign) < 0x2E80 else 1000) for sign in text) * size / 1000


def shorten(text: str, width: float, size: float = SIZE) -> str:
    """A text that fits into a width, cut at its end where it must be.

    Example:
        >>> shorten("a name of many words", 60)
        'a name o…'
    """
    if text_width(text, size) <= width:
        return text
    kept = text
    while kept and text_width(kept + _ELLIPSIS, size) > width:
        kept = kept[:-1]
    return kept.rstrip() + _ELLIPSIS


@dataclass(frozen=True)
class Box:
    """A rectangle on the page; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def within(self, other: Box) -> bool:
        """Whether the other holds this one whole."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom


@dataclass(frozen=True)
class Placed:
    """A label at its place: `x` is its left end, `y` its baseline; `far` asks for a line to its mark."""

    text: str
    x: float
    y: float
    far: bool


def place(
    wanted: Iterable[tuple[str, float, float]], obstacles: Sequence[Box], inside: Box, size: float = SIZE
) -> list[Placed | None]:
    """Places labels near their marks, the first with the widest choice; None where there is no free place.

    Args:
        wanted: (text, x, y of the mark's centre) of each label, the most important first.
        obstacles: what no label may cover: marks, whiskers, ticks.
        inside: the frame that labels stay in.
        size: of the letters, in pixels.
    """
    taken = list(obstacles)
    placed: list[Placed | None] = []
    for text, x, y in wanted:
        found = next((p for p in _places(text, x, y, size) if _free(_box(p, size), taken, inside)), None)
        placed.append(found)
        if found is not None:
            taken.append(_box(found, size))
    return placed


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions in the order of the wanted ones, at least `gap` apart and inside [low, high] where there is room.

    Example:
        >>> spread([10.0, 12.0, 50.0], 12.0, 0.0, 100.0)
        [5.0, 17.0, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])

    def inside(count: int, centre: float) -> float:
        half = gap * (count - 1) / 2
        return min(max(centre, low + half), max(low + half, high - half))

    # clusters of labels that touch share their shift, as (members, centre)
    clusters: list[tuple[int, float]] = []
    for index in order:
        count, centre = 1, inside(1, wanted[index])
        while clusters and clusters[-1][1] + gap * (clusters[-1][0] + count) / 2 > centre:
            earlier, middle = clusters.pop()
            centre = (earlier * middle + count * centre) / (earlier + count)
            count += earlier
            centre = inside(count, centre)
        clusters.append((count, centre))
    positions = [centre + gap * (step - (count - 1) / 2) for count, centre in clusters for step in range(count)]
    result = [0.0] * len(wanted)
    for index, position in zip(order, positions, strict=True):
        result[index] = position
    return result


def _places(text: str, x: float, y: float, size: float) -> Iterable[Placed]:
    width = text_width(text, size)
    for distance in (8.0, 14.0, 22.0, 32.0, 44.0, 60.0):
        far = distance > 14
        for across, down in ((1, 0), (1, -1), (1, 1), (-1, 0), (-1, -1), (-1, 1), (0, -1), (0, 1)):
            left = {1: x + distance, -1: x - distance - width, 0: x - width / 2}[across]
            # a label straight above or below clears the mark by its own height
            shift = down * (distance if across else distance + size / 2)
            yield Placed(text, left, y + shift + 0.35 * size, far)


def _box(label: Placed, size: float) -> Box:
    return Box(label.x - 2, label.y - 0.85 * size, label.x + text_width(label.text, size) + 2, label.y + 0.3 * size)


def _free(box: Box, taken: Iterable[Box], inside: Box) -> bool:
    return box.within(inside) and not any(box.meets(other) for other in taken)
