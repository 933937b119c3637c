"""The objects of the suite: each is painted into a video and has one question about it.

An item is drawn for a number of beats (two frames, one temporal grid) and occupies cells of 16x16 pixels; what it does
is random and determines the answer. `PRUNED` says what pruning does to the tokens that show the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.synthetic.video import BLACK, COLORS, WHITE, color, rgb

CELL = 16  # pixels of a cell's side, one merged token
HALF = 6  # half of an object's side or its radius, in pixels
BEAT = 2  # frames; every change falls on a beat, so that a temporal grid shows one state

PRUNED = {
    "static": "kept: the first grid holds it",
    "late": "kept where it appears, however late",
    "state": "the last change is kept, what follows it is not: the last survivor must be read as the end",
    "order": "both events are kept, with their places in time",
    "direction": "kept while it moves, dropped where it rests",
    "count": "every flash is kept as two changes",
    "small": "less than a token of change, late: dropped where the budget is spent elsewhere",
    "fade": "changes less than the noise at every step: dropped",
}
NUMBERS = ("one", "two", "three", "four")

Place = tuple[int, int]  # pixels: row and column of a center
Paint = Callable[[np.ndarray, int], None]  # paints into [H, W, 3] at a frame


@dataclass(frozen=True)
class Item:
    """One object of a video, or two that belong together."""

    kind: str
    question: str
    answer: str
    options: tuple[str, ...]  # all answers that this kind has
    paint: Paint


_Y, _X = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
SOLID = np.full(_Y.shape, True)
DISC = _X**2 + _Y**2 <= HALF**2
RING = DISC & (_X**2 + _Y**2 > (HALF - 3) ** 2)
DIAMOND = abs(_X) + abs(_Y) <= HALF
TRIANGLE = abs(_X) * 2 <= _Y + HALF
INNER = np.maximum(abs(_X), abs(_Y)) <= HALF - 2
DOT = np.maximum(abs(_X), abs(_Y)) <= 2


def stamp(frame: np.ndarray, place: Place, mask: np.ndarray, value: Sequence[float] | np.ndarray) -> None:
    """Paint the mask's pixels around a center that is at least HALF away from the frame's edges."""
    top, left = place[0] - HALF, place[1] - HALF
    frame[top : top + len(mask), left : left + len(mask)][mask] = value


def static(rng: np.random.Generator, places: list[Place], beats: int) -> Item:
    """A square that is always there."""
    name = color(rng)
    return _item("static", "What color is the square?", name, lambda x, _: stamp(x, places[0], SOLID, rgb(name)))


def late(rng: np.random.Generator, places: list[Place], beats: int) -> Item:
    """A ring that appears and stays."""
    name, begin = color(rng), _beat(rng, 0.3, 0.9, beats)
    return _appearing("late", "What color is the ring?", RING, name=name, place=places[0], begin=begin)


def state(rng: np.random.Generator, places: list[Place], beats: int) -> Item:
    """A lamp in a black box that changes one to three times, and stays."""
    at = sorted((BEAT * (1 + rng.choice(int(0.8 * beats) - 1, int(rng.integers(1, 4)), replace=False))).tolist())
    shown = [color(rng)]
    for _ in at:
        shown.append(color(rng, but=shown[-1]))

    def paint(frame: np.ndarray, t: int) -> None:
        stamp(frame, places[0], SOLID, BLACK)
        stamp(frame, places[0], INNER, rgb(shown[sum(t >= change for change in at)]))

    return _item("state", "At the end, what color is the lamp?", shown[-1], paint)


def order(rng: np.random.Generator, places: list[Place], beats: int) -> Item:
    """Two triangles, each seen for one beat."""
    first, second = rng.choice(2, 2, replace=False).tolist()
    colors = [color(rng)]
    colors.append(color(rng, but=colors[0]))
    times = sorted((BEAT * (1 + rng.choice(beats - 2, 2, replace=False))).tolist())

    def paint(frame: np.ndarray, t: int) -> None:
        for which, begin in zip((first, second), times):
            if begin <= t < begin + BEAT:
                stamp(frame, places[which], TRIANGLE, rgb(colors[which]))

    return _item("order", "Which color blinked first?", colors[first], paint)


def direction(rng: np.random.Generator, places: list[Place], beats: int) -> Item:
    """A white diamond that moves by one cell; it takes the two cells between which it moves."""
    (top, left), (down, right) = places[:2]
    answer = ("bottom" if down > top else "top") if left == right else ("right" if right > left else "left")
    begin, length = _beat(rng, 0.1, 0.5, beats), BEAT * int(rng.integers(2, 2 + beats // 3))

    def paint(frame: np.ndarray, t: int) -> None:
        progress = min(max((t // BEAT * BEAT - begin) / length, 0), 1)
        place = round(top + progress * (down - top)), round(left + progress * (right - left))
        stamp(frame, place, DIAMOND, WHITE)

    options = ("left", "right", "top", "bottom")
    return Item("direction", "To which side moved the white one?", answer, options, paint)


def count(rng: np.random.Generator, places: list[Place], beats: int) -> Item:
    """A white light that is on for one beat, one to four times."""
    most = min(len(NUMBERS), (beats - 1) // 2)
    times = int(rng.integers(1, most + 1))
    slots = rng.choice((beats - 1) // 2, times, replace=False)  # every other beat, so that no two flashes touch
    on = {int(BEAT * (1 + 2 * slot)) for slot in slots}

    def paint(frame: np.ndarray, t: int) -> None:
        stamp(frame, places[0], DISC, WHITE if t // BEAT * BEAT in on else BLACK)

    return Item("count", "The light blinked how many times?", NUMBERS[times - 1], NUMBERS, paint)


def small(rng: np.random.Generator, places: list[Place], beats: int) -> Item:
    """A dot of a tenth of a token that appears late and stays."""
    name, begin = color(rng), _beat(rng, 0.5, 0.9, beats)
    return _appearing("small", "What color is the small one?", DOT, name=name, place=places[0], begin=begin)


def fade(rng: np.random.Generator, places: list[Place], beats: int) -> Item:
    """A disc that goes from one color to another during the whole video, too slowly to be a change."""
    begin = color(rng)
    end = color(rng, but=begin)

    def paint(frame: np.ndarray, t: int) -> None:
        share = min(1.0, t / (BEAT * (beats - 1)))
        stamp(frame, places[0], DISC, (1 - share) * rgb(begin) + share * rgb(end))

    return _item("fade", "At the end, what color is the disc?", end, paint)


KINDS: dict[str, Callable[[np.random.Generator, list[Place], int], Item]] = {
    made.__name__: made for made in (static, late, state, order, direction, count, small, fade)
}
CELLS_OF = {"order": 2, "direction": 2}  # others take one; direction's lie side by side


def _appearing(kind: str, question: str, mask: np.ndarray, *, name: str, place: Place, begin: int) -> Item:
    def paint(frame: np.ndarray, t: int) -> None:
        if t >= begin:
            stamp(frame, place, mask, rgb(name))

    return _item(kind, question, name, paint)


def _item(kind: str, question: str, answer: str, paint: Paint) -> Item:
    return Item(kind, question, answer, tuple(COLORS), paint)


def _beat(rng: np.random.Generator, low: float, high: float, beats: int) -> int:
    """A frame at a beat in that part of the video, never its first."""
    return BEAT * max(1, min(beats - 1, int(beats * rng.uniform(low, high))))
