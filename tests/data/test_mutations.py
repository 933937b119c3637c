"""No medium ends a run, takes longer or more memory than it may, or gets lost without a reason."""

import pytest
from transformers import AutoProcessor

from data.batching import shards
from data.containment import Limits
from data.encode import Encoder
from data.loader import shard_loader
from data.sources.base import Selection
from data.sources.collection import Reading
from data.sources.index import build_index
from tests.data import mutations
from tests.data.conftest import POLICY
from tests.data.reading import collected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_mutated_medium_is_decoded_or_quarantined(checkpoint, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoint("qwen3_vl"))
    encoder = Encoder(processor, POLICY, limits=Limits(seconds=120, gib=2))
    collection = collected(str(mutations.rows(tmp_path, 47, without="8k.mp4")))
    index = build_index(collection, encoder, Reading(progress=False))
    samples = Selection(collection.samples, index.places_S)
    steps = list(shard_loader(samples, encoder, shards(len(samples), 8, 1, 0)))
    used = {id for step in steps for batch in step.batches for id in batch.ids}
    reasons = {lost.id: lost.reason for lost in (*index.lost, *(each for step in steps for each in step.quarantined))}
    assert not used & reasons.keys() and len(used) + len(reasons) == 47
    assert {"wide.png", "bomb.png", "8k_one_frame.mp4"} <= reasons.keys()
    assert all(reason and "\n" not in reason for reason in reasons.values())
