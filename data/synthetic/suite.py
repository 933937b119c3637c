"""The graded suite: videos whose questions compare recipes under pruning and show what pruning itself loses.

A video holds a few items (data.synthetic.items) under conditions: a background, a fixed or moving camera, a level of
sensor noise and compression, and a length. Held-out rows ask one question each and are labelled with its kind and the
conditions; training rows ask all questions of a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data.synthetic import footage
from data.synthetic.items import BEAT, CELL, CELLS_OF, KINDS, Item
from data.synthetic.video import write_data_set, write_video

SIDE, FPS = 4 * CELL, 4
SHAKE = 4  # pixels that a panning camera moves to either side
# (standard deviation of the noise, of 255; H.264's crf)
QUALITY = {"clean": (0.0, 16), "normal": (3.0, 20), "rough": (8.0, 28)}
CAMERAS = ("fixed", "moving")
SPLITS = {"train": footage.TRAIN, "held_out": footage.HELD_OUT}


@dataclass(frozen=True)
class Suite:
    """The choices from which videos are drawn; every combination of conditions is equally likely."""

    split: str = "train"
    seed: int = 0
    kinds: tuple[str, ...] = tuple(KINDS)
    items: int = 4  # of different kinds in one video
    backgrounds: tuple[str, ...] = ("texture",)
    cameras: tuple[str, ...] = ("fixed",)
    qualities: tuple[str, ...] = ("normal",)
    grids: tuple[int, ...] = (16,)  # temporal grids of a video
    lettered: bool = False  # four lettered options and a letter for an answer, not the answer itself

    def __post_init__(self) -> None:
        for name, choices in (("kinds", KINDS), ("cameras", CAMERAS), ("qualities", QUALITY)):
            _check(name, getattr(self, name), list(choices))
        _check("split", (self.split,), list(SPLITS))
        footage.check(list(self.backgrounds))
        if not 1 <= self.items <= len(self.kinds):
            raise ValueError(
                f"items={self.items} of {len(self.kinds)} kinds in one video: give a number from 1 to that"
            )
        if not self.grids or min(self.grids) < 8:
            raise ValueError(f"grids={list(self.grids)}: give at least 8, shorter videos leave no room for the events")


@dataclass(frozen=True)
class Conditions:
    """The conditions of one video."""

    background: str
    camera: str
    quality: str
    grids: int


def generate(out: Path, videos: int, suite: Suite, *, workers: int = 2) -> Path:
    """Write the data set with `workers` processes and return the path of its data.jsonl.

    The frames of a video depend on the suite and its number only; the bytes that the encoder writes may vary slightly.
    """
    return write_data_set(out, videos, partial(_write, out=out, suite=suite), workers)


def plan(suite: Suite, number: int) -> tuple[Conditions, list[Item], np.random.Generator]:
    """One video's conditions and items, and the generator that its pixels are drawn from."""
    rng = np.random.default_rng([list(SPLITS).index(suite.split), suite.seed, number])
    pick = partial(_pick, rng)
    conditions = Conditions(pick(suite.backgrounds), pick(suite.cameras), pick(suite.qualities), int(pick(suite.grids)))
    kinds = rng.choice(suite.kinds, suite.items, replace=False).tolist()
    places = iter(_places(rng, kinds))
    return conditions, [KINDS[kind](rng, next(places), conditions.grids) for kind in kinds], rng


def render(conditions: Conditions, items: Sequence[Item], split: str, rng: np.random.Generator) -> np.ndarray:
    """[T, SIDE, SIDE, 3] uint8 RGB."""
    frames = BEAT * conditions.grids
    moving = SHAKE if conditions.camera == "moving" else 0
    scene = footage.background(_footage(conditions.background, split), rng, frames, SIDE + 2 * SHAKE)
    for t, frame in enumerate(scene):
        for item in items:
            item.paint(frame[SHAKE:, SHAKE:], t)
    phase, speed = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.5, 0.9, 2)  # radians per frame: 2 to 4 pixels
    shift = (SHAKE + moving * np.sin(phase + speed * np.arange(frames)[:, None])).round().astype(int)
    cropped = np.stack([frame[y : y + SIDE, x : x + SIDE] for frame, (y, x) in zip(scene, shift)])
    noise = QUALITY[conditions.quality][0] * rng.standard_normal(cropped.shape, dtype=np.float32)
    return np.clip(cropped + noise, 0, 255).round().astype(np.uint8)


def _write(number: int, out: Path, suite: Suite) -> list[dict[str, Any]]:
    conditions, items, rng = plan(suite, number)
    video = f"videos/{number:05d}.mp4"
    frames = render(conditions, items, suite.split, rng)
    write_video(out / video, frames, FPS, QUALITY[conditions.quality][1])
    turns = [_turns(*(_lettered(item, rng) if suite.lettered else (item.question, item.answer))) for item in items]
    shared = {"video": video, **asdict(conditions)}
    if suite.split == "train":
        return [{"id": f"{number:05d}", **shared, "conversations": _with_video(list(chain.from_iterable(turns)))}]
    return [
        {"id": f"{number:05d}-{item.kind}", "kind": item.kind, **shared, "conversations": _with_video(question)}
        for item, question in zip(items, turns)
    ]


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _with_video(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**turns[0], "value": f"<video>\n{turns[0]['value']}"}, *turns[1:]]


def _lettered(item: Item, rng: np.random.Generator) -> tuple[str, str]:
    """(question with four options, the right one's letter)."""
    others = [option for option in item.options if option != item.answer]
    options = rng.permutation([item.answer, *rng.choice(others, 3, replace=False)]).tolist()
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options)]
    return "\n".join([item.question, *lines]), "ABCD"[options.index(item.answer)]


def _places(rng: np.random.Generator, kinds: Sequence[str]) -> list[list[tuple[int, int]]]:
    """The centers of the cells of each kind's item, in pixels; no cell is used twice."""
    free = [(row, column) for row in range(SIDE // CELL) for column in range(SIDE // CELL)]
    rng.shuffle(free)
    taken: dict[str, list[tuple[int, int]]] = {}
    for kind in sorted(kinds, key=lambda kind: kind != "direction"):  # first, because it needs adjacent cells
        cells = _neighbours(free) if kind == "direction" else free[: CELLS_OF.get(kind, 1)]
        free = [cell for cell in free if cell not in cells]
        taken[kind] = [(CELL * row + CELL // 2, CELL * column + CELL // 2) for row, column in cells]
    return [taken[kind] for kind in kinds]


def _neighbours(free: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return next([a, b] for a in free for b in free if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1)


@cache
def _footage(name: str, split: str) -> footage.Footage | None:
    return None if name == "texture" else footage.read(name, SPLITS[split], SIDE + 2 * SHAKE)


def _pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _check(name: str, values: Sequence[str], choices: list[str]) -> None:
    for value in values:
        if value not in choices:
            raise ValueError(f"{name}={value} is unknown: use {', '.join(choices)}")
    if not values:
        raise ValueError(f"{name}=[] is empty: use one or more of {', '.join(choices)}")
