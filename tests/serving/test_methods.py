"""VidCom2 beside vLLM's own: the same masks to the bit, and the same answers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from evs.methods import METHODS
from evs.policy import Policy
from evs.types import Grid
from scripts.check_serving import Options, check
from scripts.make_tiny_model import make
from scripts.serving.cases import CASES

pytestmark = pytest.mark.serving

RATES = [0.05, 0.3, 0.5, 0.75, 0.9, 0.99]
DTYPES = ["float32", "bfloat16", "float16"]
THEIRS = """
import sys, numpy as np, torch
from vllm.multimodal.video_prune.vidcom2 import compute_retention_mask
job = np.load(sys.argv[1]); rates = job["rates"].tolist(); kept = {}
for key in [key for key in job.files if key != "rates"]:
    t, h, w, dtype = key.split("x")
    rows = torch.from_numpy(job[key]).to(getattr(torch, dtype))
    masks = [compute_retention_mask(rows, (int(t), int(h), int(w)), 1, rate) for rate in rates]
    kept[key] = torch.stack(masks).numpy()
np.savez(sys.argv[2], **kept)
"""


def test_vidcom2_keeps_the_servers_tokens_in_every_dtype(environment, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(1, 2, 3), (5, 3, 5), (8, 4, 6), (16, 2, 2), (15, 3, 3), (3, 14, 24)]
    still = {shape: torch.randn(1, shape[1] * shape[2], 33, generator=random) for shape in shapes}
    rows = {s: (x + 0.5 * torch.randn(s[0], *x.shape[1:], generator=random)).flatten(0, 1) for s, x in still.items()}
    keys = {"x".join([*map(str, shape), dtype]): shape for shape in shapes for dtype in DTYPES}
    np.savez(tmp_path / "job.npz", rates=np.array(RATES), **{key: rows[shape].numpy() for key, shape in keys.items()})
    command = [environment("0.32.0"), "-c", THEIRS, tmp_path / "job.npz", tmp_path / "kept.npz"]
    subprocess.run(command, check=True, capture_output=True)
    kept = np.load(tmp_path / "kept.npz")
    for key, shape in keys.items():
        method = METHODS["vidcom2"](key.rsplit("x", 1)[1])
        for rate, theirs in zip(RATES, kept[key]):
            ours = method.keep(rows[shape], Grid(*shape), rate).flatten().numpy()
            assert (ours == theirs).all(), (key, rate)


def test_a_checkpoint_of_vidcom2_is_served_as_trained(environment, tmp_path: Path) -> None:
    model = str(make("qwen3_vl", tmp_path))
    Policy(method="vidcom2", scorer_dtype=None).write(model)
    verdicts = check(Options(model, environment("0.32.0"), [0.0, 0.5, 0.75, 0.9], chunks=[0, 64]))
    assert len(verdicts) == len(CASES) * 4 * 2
    assert {key: verdict.text for key, verdict in verdicts.items() if not verdict.agrees} == {}
    assert not any(verdict.ties for verdict in verdicts.values())
