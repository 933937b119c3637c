"""The model and the data of the comparison: a random Qwen2.5-VL of 131 M parameters, and 64 rows about 16 clips.

Every framework reads the same pixels of a clip, however it samples two frames a second: the picture stands still for
half a second at a time, in whole seconds at 24 frames a second, without loss. Its sides are multiples of 28 below
256 x 256 pixels, which resizing leaves alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.batching.plans import Plan
from data.synthetic.video import write_video
from scripts.make_tiny_model import make

FPS = 24
SIZES = {  # 131 M parameters; the head's share of them is that of the 3B
    **{"text_width": 768, "text_layers": 9, "text_heads": 12, "text_kv_heads": 2, "text_mlp": 4096},
    **{"vision_width": 320, "vision_depth": 8, "vision_heads": 4, "vision_mlp": 560, "vocabulary": 15_360},
}
CLIPS = 4 * ((5, 224, 280), (4, 196, 252), (4, 224, 224), (5, 168, 280))  # (seconds, height, width)
QUESTIONS = {
    "Which clip is it?": "It is clip {number}, {seconds} seconds of it.",
    "What does the clip show?": "The clip shows blocks of color, which move to the right.",
    "What size is the picture?": "The picture is {width} wide and {height} high, and the clip is {seconds} seconds.",
    "What do you see at the end?": "At the end of the video the blocks of color still move.",
}


@dataclass(frozen=True)
class BenchmarkData:
    model: Path
    ours: Path  # LLaVA conversations, which our run shuffles by its seed
    peers: Path  # the same rows as messages, in the order in which our run takes them


def prepare(folder: Path, device: str = "cpu", **sizes: Any) -> BenchmarkData:
    """Write the model and the data to `folder` unless they are there. `sizes` replaces some of SIZES; weights are drawn
    on `device`."""
    data = BenchmarkData(folder / "model", folder / "ours.jsonl", folder / "peers.jsonl")
    if not data.peers.exists():
        with torch.device(device):
            make("qwen2_5_vl", data.model, **(SIZES | sizes))
        write_rows(data, list(_rows(folder / "clips")))
    return data


def write_rows(data: BenchmarkData, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write rows of (video, question, answer) in both formats."""
    plan = Plan(len(rows), 1, 1, world=1, rank=0, seed=0)
    order = [plan.micro_batches(step)[0][0] for step in range(len(rows))]
    _write_lines(data.ours, (_conversation(*row) for row in rows))
    _write_lines(data.peers, (_messages(*rows[index]) for index in order))


def _rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (seconds, height, width) in enumerate(CLIPS):
        write_clip(path := folder / f"{number}.mp4", number)
        for question, answer in QUESTIONS.items():
            yield str(path), question, answer.format(number=number, seconds=seconds, height=height, width=width)


def write_clip(path: Path, number: int) -> None:
    """Blocks of color that jump to the right every half second."""
    seconds, height, width = CLIPS[number]
    blocks = np.random.default_rng(number).integers(0, 256, (height // 14, width // 14, 3), np.uint8)
    picture, still = np.kron(blocks, np.ones((14, 14, 1), np.uint8)), FPS // 2
    frames = [np.roll(picture, 2 * (i - i % still), axis=1) for i in range(FPS * seconds)]
    write_video(path, np.stack(frames), FPS, crf=0)


def _conversation(video: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>" + question}, {"from": "gpt", "value": answer}]
    return {"video": video, "conversations": turns}


def _messages(video: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": "<video>" + question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "videos": [video]}


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
