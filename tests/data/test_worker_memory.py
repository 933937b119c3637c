"""A data worker that decodes many files does not grow."""

from __future__ import annotations

import multiprocessing
import shutil

import psutil
import pytest
from transformers import AutoProcessor

from data.batching.plans import Plan
from data.encoding.encoder import Encoder
from data.loader import step_loader
from data.media.frames import FramePolicy
from data.types import ImageRef, Sample, Turn, VideoRef
from scripts.bench.mutations import originals
from scripts.make_tiny_model import make

BATCH, CLIPS, SETTLED = 8, 600, 200  # clips after which memory has settled


@pytest.mark.slow
def test_a_data_worker_does_not_grow(tmp_path):
    processor = AutoProcessor.from_pretrained(make("qwen2_5_vl", tmp_path / "model"))
    encoder = Encoder(processor, FramePolicy(max_frames=16, max_pixels=25088))
    plan = Plan(CLIPS, BATCH, 1, 1, 0, seed=0)
    resident, before = [], set(multiprocessing.active_children())
    steps = step_loader(samples(tmp_path), encoder, plan, first_step=0, last_step=CLIPS // BATCH, workers=1)
    for step in steps:
        assert not step.quarantined, step.quarantined[0].reason
        (worker,) = set(multiprocessing.active_children()) - before
        resident.append(psutil.Process(worker.pid).memory_info().rss)
    assert resident[-1] / resident[SETTLED // BATCH] < 1.05


def samples(folder) -> list[Sample]:
    """Copies of a few intact files, each under its own name."""
    files, made = originals(folder), []
    for number in range(CLIPS):
        source = files[number % len(files)]
        path = str(shutil.copy(source, folder / f"{number}{source.suffix}"))
        ref = ImageRef(path) if source.suffix in (".png", ".jpg") else VideoRef(path)
        made.append(Sample(str(number), (Turn("user", (ref, "What moves?")), Turn("assistant", ("a block",)))))
    return made
