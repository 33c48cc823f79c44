"""Where a chart's labels go: beside their points, over no other label and no symbol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

WIDTH = 0.58
"""Of a character on average, as a part of the type size: text cannot be measured before it is shown."""


@dataclass(frozen=True)
class Box:
    """A rectangle of the drawing; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: Box) -> bool:
        """Whether the two share more than an edge."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """Whether the other one lies inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True)
class Wanted:
    """A label and the point that it is for."""

    text: str
    x: float
    y: float
    size: float
    """Of the type."""
    radius: float
    """Of the point's symbol."""


@dataclass(frozen=True)
class Placed:
    """A label and where its box lies."""

    label: Wanted
    box: Box


def around(x: float, y: float, radius: float) -> Box:
    """What a symbol covers."""
    return Box(x - radius, y - radius, x + radius, y + radius)


def width_of(text: str, size: float) -> float:
    """About how wide a text is."""
    return WIDTH * size * len(text)


def shortened(text: str, size: float, width: float) -> str:
    """The text, or what of it fits into a width and an ellipsis."""
    fits = max(1, int(width / (WIDTH * size)))
    return text if len(text) <= fits else text[: fits - 1].rstrip() + "…"


def place(wanted: Sequence[Wanted], obstacles: Iterable[Box], frame: Box) -> list[Placed]:
    """A place for each label, the first ones first; one that finds none is left out.

    Args:
        wanted: The labels.
        obstacles: What none of them may cover: symbols, pieces of lines.
        frame: What they must stay in.
    """
    taken, placed = list(obstacles), []
    for label in wanted:
        box = next((box for box in _places(label) if frame.holds(box) and not any(map(box.touches, taken))), None)
        if box is not None:
            taken.append(box)
            placed.append(Placed(label, box))
    return placed


def along(start: tuple[float, float], end: tuple[float, float], step: float = 5.0) -> Iterator[Box]:
    """Small boxes along a straight line, so that labels stay off it."""
    (x, y), (to_x, to_y) = start, end
    count = max(1, int(max(abs(to_x - x), abs(to_y - y)) / step))
    for number in range(1, count):
        part = number / count
        yield around(x + part * (to_x - x), y + part * (to_y - y), 1.0)


def _places(label: Wanted) -> Iterator[Box]:
    """Beside, above, below and at the corners of its point, near and then farther away."""
    width, height = width_of(label.text, label.size), 1.1 * label.size
    for gap in (label.radius + 2, label.radius + 9):
        slant = max(0.75 * gap, label.radius + 1)
        left, right = label.x - gap - width, label.x + gap
        middle = label.x - width / 2
        for x, y in (
            *((label.x + slant, label.y - slant - height), (label.x - slant - width, label.y - slant - height)),
            *((label.x + slant, label.y + slant), (label.x - slant - width, label.y + slant)),
            *((right, label.y - height / 2), (left, label.y - height / 2)),
            *((middle, label.y - gap - height), (middle, label.y + gap)),
        ):
            yield Box(x, y, x + width, y + height)
