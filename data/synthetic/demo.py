"""Videos with known answers, written as real files: the demo's data set.

Each video shows, in front of a static texture with sensor noise: a solid square that is always visible, a ring that
appears later and stays, two lamps that change color one to three times and keep the last color, and two white-framed
squares of which one moves. A row asks five questions in random order in one conversation. A frame of 64x64 pixels has
4x4 cells of 16, one merged token each for a patch size of 8, and 32 frames make 16 temporal grids.

Pruning drops the tokens of objects that no longer change: a lamp that has stopped changing has no tokens at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.synthetic.video import BLACK, COLORS, WHITE, color, rgb, texture, write_data_set, write_video

FRAMES, FPS = 32, 4
CELL, CELLS = 16, 4  # pixels of a cell's side, cells of a frame's side
SIDE = CELL * CELLS
HALF = 6  # half of an object's side or its radius, in pixels
BEAT = 2  # frames; every change falls on a beat, so that a temporal grid shows one state
NOISE = 3.0  # standard deviation of the sensor noise, of 255
LAMPS = ("upper", "lower")  # by the half of its black box that shines
QUESTIONS = {
    "square": "What color is the square?",
    "ring": "What color is the ring?",
    "upper": "At the end, what color is the upper lamp?",
    "lower": "At the end, what color is the lower lamp?",
    "moved": "What color is the square that moved?",
}


@dataclass(frozen=True)
class Scene:
    """The plan of one video. A cell is (row, column); colors are names, one per frame for the lamps."""

    cells: dict[str, tuple[int, int]]  # of every object; for "moved", where it starts
    goal: tuple[int, int]  # where the moving square ends, next to its start
    square: str
    ring: str
    lamps: dict[str, list[str]]  # of LAMPS -> color by frame
    framed: dict[str, str]  # "moved" and "still" -> color
    ring_from: int  # frame
    move: tuple[int, int]  # frames: first and last of the motion

    @property
    def answers(self) -> dict[str, str]:
        lamps = {lamp: colors[-1] for lamp, colors in self.lamps.items()}
        return {"square": self.square, "ring": self.ring, "moved": self.framed["moved"], **lamps}


def generate(out: Path, videos: int, seed: int, *, workers: int = 2) -> Path:
    """Write the data set with `workers` processes and return the path of its data.jsonl.

    The frames of a video depend on `seed` and its number only; the bytes that the encoder writes may vary slightly.
    """
    return write_data_set(out, videos, partial(_write, out=out, seed=seed), workers)


def plan(rng: np.random.Generator) -> Scene:
    """A random scene, every object in a cell of its own."""
    free = [(row, column) for row in range(CELLS) for column in range(CELLS)]
    rng.shuffle(free)
    start, goal = next((a, b) for a in free for b in free if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1)
    rest = [cell for cell in free if cell not in (start, goal)]
    cells = {"moved": start} | dict(zip(("still", "square", "ring", *LAMPS), rest))
    moved, still = rng.choice(list(COLORS), 2, replace=False).tolist()
    begin = BEAT * int(rng.integers(1, 8))
    return Scene(
        cells=cells,
        goal=goal,
        square=color(rng),
        ring=color(rng),
        lamps={lamp: _lamp(rng) for lamp in LAMPS},
        framed={"moved": moved, "still": still},
        ring_from=BEAT * int(rng.integers(3, 13)),
        move=(begin, begin + BEAT * int(rng.integers(4, 8))),
    )


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """[FRAMES, SIDE, SIDE, 3] uint8 RGB."""
    frames = np.repeat(texture(rng, SIDE)[None], FRAMES, axis=0)
    places = {name: _center(cell) + rng.integers(-1, 2, 2) for name, cell in scene.cells.items()}
    y, x = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
    solid, disc, inner = np.full(y.shape, True), x**2 + y**2 <= HALF**2, np.maximum(abs(x), abs(y)) <= HALF - 2
    hole = x**2 + y**2 <= (HALF - 3) ** 2

    def paint(view: np.ndarray, place: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
        top, left = place - HALF
        view[:, top : top + len(mask), left : left + len(mask)][:, mask] = color

    paint(frames, places["square"], solid, rgb(scene.square))
    paint(frames[scene.ring_from :], places["ring"], disc, rgb(scene.ring))
    paint(frames[scene.ring_from :], places["ring"], hole, np.array(BLACK))
    bulbs = {"upper": y < 0, "lower": y > 0}
    for lamp, colors in scene.lamps.items():
        paint(frames, places[lamp], solid, np.array(BLACK))
        paint(frames, places[lamp], bulbs[lamp] & solid, np.stack([rgb(color) for color in colors])[:, None])
    path = _path(scene)
    for frame in range(FRAMES):
        for name, place in (("still", places["still"]), ("moved", places["moved"] + path[frame])):
            paint(frames[frame : frame + 1], place, solid, np.array(WHITE))
            paint(frames[frame : frame + 1], place, inner, rgb(scene.framed[name]))
    noise = NOISE * rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(frames + noise, 0, 255).round().astype(np.uint8)


def _write(number: int, out: Path, seed: int) -> list[dict[str, object]]:
    rng = np.random.default_rng([seed, number])
    scene = plan(rng)
    video = f"videos/{number:05d}.mp4"
    write_video(out / video, render(scene, rng), FPS)
    names = rng.permutation(list(QUESTIONS)).tolist()
    return [{"id": f"{number:05d}", "video": video, "conversations": list(_conversation(scene, names))}]


def _conversation(scene: Scene, names: list[str]) -> Iterator[dict[str, str]]:
    for place, name in enumerate(names):
        yield {"from": "human", "value": ("" if place else "<video>\n") + QUESTIONS[name]}
        yield {"from": "gpt", "value": scene.answers[name]}


def _lamp(rng: np.random.Generator) -> list[str]:
    """The color of each frame: one to three changes, the last well before the end."""
    changes = sorted(rng.choice(np.arange(2, 12), int(rng.integers(1, 4)), replace=False) * BEAT)
    colors = [color(rng)]
    for frame in range(1, FRAMES):
        colors.append(color(rng, but=colors[-1]) if frame in changes else colors[-1])
    return colors


def _path(scene: Scene) -> np.ndarray:
    """[FRAMES, 2] offset of the moving square from its start, in integer pixels."""
    progress = np.clip((np.arange(FRAMES) - scene.move[0]) / (scene.move[1] - scene.move[0]), 0, 1)
    return (progress[:, None] * (_center(scene.goal) - _center(scene.cells["moved"]))).round().astype(int)


def _center(cell: tuple[int, int]) -> np.ndarray:
    return np.array(cell) * CELL + CELL // 2
