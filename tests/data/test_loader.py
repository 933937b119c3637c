import pickle

import pytest
import torch

from data.batching import Plan, shards
from data.encode import Encoder
from data.loader import audit, measure, shard_loader, step_loader
from data.media.frames import FramePolicy
from data.types import Sample, Turn, VideoRef

POLICY = FramePolicy(fps=1.0, max_frames=4, min_pixels=56 * 56, max_pixels=64 * 64)


@pytest.fixture
def samples(clip, tmp_path):
    """Nine, of which number 3 has a file that is missing and number 5 one that is no video."""
    paths = [str(clip)] * 9
    paths[3] = str(tmp_path / "gone.mp4")
    paths[5] = str(tmp_path / "noise.mp4")
    (tmp_path / "noise.mp4").write_bytes(b"\0" * 999)
    return [
        Sample(str(i), (Turn("user", (VideoRef(path), f"What {i}?")), Turn("assistant", ("yes",))))
        for i, path in enumerate(paths)
    ]


@pytest.fixture
def encoder(processor):
    return Encoder(processor, POLICY)


def same(left, right):
    pairs = zip(left.batches, right.batches, strict=True)
    return left.quarantined == right.quarantined and all(
        a.ids == b.ids
        and torch.equal(a.input_ids_N, b.input_ids_N)
        and torch.equal(a.second_per_grid_V, b.second_per_grid_V)
        for a, b in pairs
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_later_start_gives_the_same_steps(samples, encoder, workers):
    plan = Plan(len(samples), 2, 2, 1, 0, seed=1)
    whole = list(step_loader(samples, encoder, plan, first_step=0, last_step=5))
    resumed = list(step_loader(samples, encoder, plan, first_step=2, last_step=5, workers=workers))
    assert len(resumed) == 3
    assert all(same(a, b) for a, b in zip(whole[2:], resumed))


def test_bad_media_are_left_out_and_reported(samples, encoder):
    plan = Plan(len(samples), 3, 3, 1, 0, seed=0, shuffle=False)
    (step,) = step_loader(samples, encoder, plan, first_step=0, last_step=1)
    assert [batch.ids for batch in step.batches] == [("0", "1", "2"), ("4",), ("6", "7", "8")]
    assert [lost.id for lost in step.quarantined] == ["3", "5"]
    assert "no such file" in step.quarantined[0].reason


def test_a_batch_whose_samples_are_all_bad_is_still_a_batch(samples, encoder):
    plan = Plan(1, 1, 1, 1, 0, seed=0)
    (step,) = step_loader(samples[3:4], encoder, plan, first_step=0, last_step=1)
    assert len(step.batches[0].input_ids_N) == 1 and step.batches[0].ids == ()


def test_long_rows_are_left_out_whole(samples, processor):
    plan = Plan(1, 1, 1, 1, 0, seed=0)
    (step,) = step_loader(samples, Encoder(processor, POLICY, max_tokens=9), plan, first_step=0, last_step=1)
    assert "data.max_tokens=9" in step.quarantined[0].reason


def test_shards_are_loaded_one_batch_a_step(samples, encoder):
    loaded = list(shard_loader(samples, encoder, shards(len(samples), 4, 2, 0)))
    assert [step.batches[0].ids for step in loaded] == [("0", "1", "2"), ("8",)]


def test_loading_draws_nothing_from_the_global_generator(samples, encoder):
    before = torch.get_rng_state()
    list(step_loader(samples, encoder, Plan(9, 3, 1, 1, 0, seed=0), first_step=0, last_step=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_audit_finds_unusable_files_before_training(samples):
    audited = audit(samples, progress=False)
    kept, lost = audited.samples, audited.lost
    assert [sample.id for sample in kept] == ["0", "1", "2", "4", "6", "7", "8"]
    assert [each.id for each in lost] == ["3", "5"]
    assert [sample.id for sample in kept[1:3]] == ["1", "2"] and pickle.loads(pickle.dumps(kept))[-1].id == "8"
    again = audit(kept, progress=False)
    assert again.samples is kept and again.lost == ()


def test_samples_are_measured_by_headers_alone_as_they_are_encoded(samples, encoder):
    audited, sizes = measure(audit(samples, progress=False), encoder, progress=False)
    assert len(sizes) == len(audited.samples) == 7
    for place, sample in enumerate(audited.samples):
        encoding = encoder.encode(sample)
        (t, h, w), (found, each) = encoding.video_grid_thw_V3[0].tolist(), (sizes.grids_V[place], sizes.tokens_V[place])
        assert (t, h * w // 4) == (found, each)
        assert sizes.fixed_S[place] + found * each == len(encoding.input_ids_N)
        assert sizes.patches_S[place] == len(encoding.pixel_values_videos) and sizes.frames_S[place] == 2 * t


def test_rows_that_are_too_long_are_left_out_before_planning(samples, processor):
    audited, sizes = measure(audit(samples, progress=False), Encoder(processor, POLICY, max_tokens=9), progress=False)
    assert len(sizes) == 0 and "data.max_tokens=9" in audited.lost[-1].reason


def test_encoders_travel_to_spawned_workers(encoder, samples):
    again = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(again.encode(samples[0]).input_ids_N, encoder.encode(samples[0]).input_ids_N)
