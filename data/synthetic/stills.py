"""Questions about an image and about text alone, which uptraining on videos must not cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.synthetic.items import CELL, KINDS
from data.synthetic.suite import SIDE, SPLITS
from data.synthetic.video import COLORS, texture

STILLS = ("image", "text")  # kinds of the questions
PLACES = ("first", "second", "third")


def write_stills(out: Path, count: int, split: str, seed: int) -> Path:
    """Write `count` questions of either kind, with PNG files, and return the path of stills.jsonl (LLaVA format)."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    data = out / "stills.jsonl"
    rows = (row for number in range(count) for row in _rows(out, number, split, seed))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def _rows(out: Path, number: int, split: str, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([list(SPLITS).index(split), seed, number, len(STILLS)])
    place = (rng.integers(SIDE // CELL, size=2) * CELL + CELL // 2).tolist()
    square, frame, image = KINDS["static"](rng, [tuple(place)], 1), texture(rng, SIDE), f"images/{number:05d}.png"
    square.paint(frame, 0)
    Image.fromarray(np.clip(frame, 0, 255).round().astype(np.uint8)).save(out / image)
    named, which = rng.permutation(list(COLORS))[: len(PLACES)].tolist(), int(rng.integers(len(PLACES)))
    asked = {
        "image": ({"image": image}, f"<image>\n{square.question}", square.answer),
        "text": ({}, f"Which color is the {PLACES[which]} of {', '.join(named)}?", named[which]),
    }
    for kind, (media, question, answer) in asked.items():
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        yield {"id": f"{number:05d}-{kind}", "kind": kind, **media, "conversations": turns}
