"""A thousand mutated media, as a data worker reads them."""

from __future__ import annotations

import resource
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from data.containment import Limits
from data.encode import Encoder
from data.media.frames import FramePolicy
from data.types import MediaError, RowError, Sample
from tests.data import mutations
from tests.data.reading import read

COUNT, SECONDS, GIB = 1000, 30.0, 2.0


def test_a_thousand_mutated_media_are_decoded_or_quarantined_within_the_limits(checkpoint, tmp_path):
    samples = list(read(str(mutations.rows(tmp_path, COUNT))))
    context = get_context("fork")
    with context.Pool(1) as pool:  # as a data worker does
        outcomes, grown = pool.apply(_encoded, (samples, checkpoint("qwen3_vl")))
    lost = [reason for reason, _ in outcomes if reason]
    slowest = max((seconds, sample.id) for (_, seconds), sample in zip(outcomes, samples))
    print(f"decoded {COUNT - len(lost)}, left out {len(lost)}, slowest {slowest}, memory {grown:.2f} GiB more")
    assert all("\n" not in reason for reason in lost)
    assert slowest[0] < SECONDS + 2 and grown < 2 * GIB


def _encoded(samples: list[Sample], model: Path) -> tuple[list[tuple[str, float]], float]:
    """Why each sample cannot be used ("" if it can) and its seconds, and by how many GiB this process grew at most."""
    policy = FramePolicy(max_frames=4, max_pixels=12544)
    encoder: Any = Encoder(AutoProcessor.from_pretrained(model), policy, limits=Limits(SECONDS, GIB))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = []
    for sample in samples:
        begin = time.monotonic()
        try:
            encoder.encode(sample)
            reason = ""
        except (MediaError, RowError) as error:
            reason = str(error)
        found.append((reason, time.monotonic() - begin))
    return found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
