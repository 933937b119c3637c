"""Memory of a data worker over many clips: resident after the first ones, and after all of them.

clips= videos of five kinds, each a file of its own, decoded and encoded by one worker process of a run's loader.
"""

from __future__ import annotations

import multiprocessing
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from transformers import AutoProcessor

from data.batching.plans import Plan
from data.encoding.encoder import Encoder
from data.loader import step_loader
from data.media.frames import FramePolicy
from data.types import ImageRef, Sample, Turn, VideoRef
from scripts.bench import mutations
from scripts.make_tiny_model import make
from train.ranges import number

BATCH = 8  # clips a step


@dataclass
class Options:
    clips: int = number(2000, least=16)
    first: int = number(200, least=8)  # after how many memory is taken to have settled
    out: str | None = None  # JSON


def worker(options: Options) -> dict[str, Any]:
    """MiB resident of the worker after the first clips and after all, and by how much it grew."""
    with TemporaryDirectory() as folder:
        processor = AutoProcessor.from_pretrained(make("qwen2_5_vl", Path(folder) / "model"))
        samples = _samples(Path(folder), options.clips)
        steps = -(-options.clips // BATCH)
        plan = Plan(len(samples), BATCH, 1, 1, 0, seed=0)
        encoder = Encoder(processor, FramePolicy(max_frames=16, max_pixels=25088))
        resident, others = [], set(multiprocessing.active_children())
        for step in step_loader(samples, encoder, plan, first_step=0, last_step=steps, workers=1):
            assert not step.quarantined, step.quarantined[0].reason
            (process,) = set(multiprocessing.active_children()) - others
            resident.append(psutil.Process(process.pid).memory_info().rss / 2**20)
    first, last = resident[options.first // BATCH], resident[-1]
    print(
        f"a data worker's resident memory after {options.first} clips: {first:.1f} MiB, after {options.clips}: "
        f"{last:.1f} MiB ({last / first - 1:+.2%}; at most {max(resident):.1f})"
    )
    return {"first_mib": first, "last_mib": last, "growth": last / first - 1, "resident_mib": resident}


def _samples(folder: Path, count: int) -> list[Sample]:
    """Copies of a few whole files, each under a name of its own."""
    whole = mutations.originals(folder)
    made = []
    for each in range(count):
        source = whole[each % len(whole)]
        path = str(shutil.copy(source, folder / f"{each}{source.suffix}"))
        ref = ImageRef(path) if source.suffix in (".png", ".jpg") else VideoRef(path)
        made.append(Sample(str(each), (Turn("user", (ref, "What moves?")), Turn("assistant", ("a block",)))))
    return made
