"""Checkpoints and data on which training goes wrong, made from good ones."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

MARK = "§"  # a character whose tokens no row has


def with_nan(checkpoint: Path, out: Path) -> Path:
    """The checkpoint with one weight that is not a number."""
    return _changed(checkpoint, out, ".layers.1.mlp.up_proj.weight", (0, 0), math.nan)


def with_overflow(checkpoint: Path, out: Path) -> Path:
    """The checkpoint with finite weights, and gradients that are not for rows that hold MARK."""
    token = AutoTokenizer.from_pretrained(checkpoint)(MARK).input_ids[-1]
    return _changed(checkpoint, out, "embed_tokens.weight", token, 3e38)


def mark(data: Path, row: int) -> None:
    """Puts MARK into the question of one row of a conversation file."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[row]["conversations"][0]["value"] += MARK
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _changed(checkpoint: Path, out: Path, ending: str, place: tuple[int, ...] | int, value: float) -> Path:
    shutil.copytree(checkpoint, out)
    weights = load_file(out / "model.safetensors")
    (name,) = (name for name in weights if name.endswith(ending))
    weights[name][place] = value
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out
