"""What is kept of the rows is what reading and encoding them gives, whoever makes it and whenever it is read."""

import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.encoding.encoder import Encoder
from data.encoding.size_prediction import predict_size, predict_sizes
from data.media.container import probe
from data.sample_limits import SampleLimits
from data.sources.collection import VERSION, ReadOptions
from data.sources.index import build_index
from data.types import IGNORE, MediaError, RowError, Sample, Turn, VideoRef
from tests.data.conftest import POLICY
from tests.data.reading import collected

QUIET = ReadOptions(progress=False)


def row(video, number):
    turns = [("human", f"<video>What {number}?"), ("gpt", "yes " * number)]
    return {"id": str(number), "video": str(video), "conversations": [{"from": a, "value": b} for a, b in turns]}


@pytest.fixture
def rows(clip, tmp_path):
    """A file of nine rows, of which number 3 has a video that is missing, 5 one that is none, and 7 no answer."""
    (tmp_path / "noise.mp4").write_bytes(b"\0" * 999)
    each = [row(clip, i + 1) | {"id": str(i)} for i in range(9)]
    each[3]["video"], each[5]["video"], each[7]["conversations"] = "gone.mp4", "noise.mp4", each[7]["conversations"][:1]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in each))
    return path


def test_unusable_rows_are_put_aside_with_a_reason(rows, encoder):
    index = build_index(collected(str(rows)), encoder, QUIET)
    assert index.indices_S.tolist() == [0, 1, 2, 4, 6, 8]
    assert [lost.id for lost in index.quarantined] == ["3", "5", f"{rows}:8"]
    assert ["no such file" in index.quarantined[0].reason, "no assistant turn" in index.quarantined[2].reason] == [
        True,
        True,
    ]


def test_sizes_are_those_of_the_encoded_samples(rows, encoder):
    collection = collected(str(rows))
    index = build_index(collection, encoder, QUIET)
    for place, sizes in zip(index.indices_S, range(len(index))):
        sample = collection.samples[int(place)]
        encoding = encoder.encode(sample)
        t, h, w = encoding.video_grid_thw_V3[0].tolist()
        found, each = index.sizes.grids_V[sizes], index.sizes.tokens_V[sizes]
        assert (t, h * w // 4) == (found, each)
        assert index.sizes.fixed_S[sizes] + found * each == len(encoding.input_ids_N)
        assert index.sizes.patches_S[sizes] == len(encoding.pixel_values_videos)
        assert index.sizes.frames_S[sizes] == 2 * t and index.sizes.pairs_S[sizes] == t * (h * w) ** 2
        assert index.sizes.targets_S[sizes] == (encoding.labels_N != IGNORE).sum()


TEXT = st.text(min_size=1, max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT, st.integers(0, 2)), min_size=1, max_size=6))
def test_samples_counted_together_cost_what_each_costs_alone(clip, encoder, texts):
    ref, gone = VideoRef(str(clip)), VideoRef("gone.mp4")
    headers = {ref: probe(ref), gone: MediaError("gone.mp4: no such file")}
    media = [(), (ref,), (ref, gone)]
    samples = [
        Sample(str(i), (Turn("user", (*media[kind], asked)), Turn("assistant", (answer,))))
        for i, (asked, answer, kind) in enumerate(texts)
    ]
    for sample, found in zip(samples, predict_sizes(encoder, samples, headers)):
        try:
            assert found == predict_size(encoder, sample, headers)
        except (MediaError, RowError) as error:
            assert str(found) == str(error)


def test_a_later_start_reads_what_an_earlier_one_kept(rows, encoder, tmp_path):
    made: list[int] = []
    counting = ReadOptions(progress=False, on_result=lambda: made.append(1))
    first = build_index(collected(str(rows)), encoder, counting)
    again = build_index(collected(str(rows)), encoder, counting)
    assert len(made) == 1 and again.digest == first.digest and again.quarantined == first.quarantined
    assert np.array_equal(again.sizes.fixed_S, first.sizes.fixed_S)
    assert len([*(tmp_path / ".evs" / f"v{VERSION}").glob("*.index")]) == 1


def test_only_what_a_change_touches_is_made_anew(rows, clip, encoder, processor, monkeypatch):
    made: list[int] = []
    counting = ReadOptions(progress=False, on_result=lambda: made.append(1))
    monkeypatch.setattr("data.sources.index.ROWS", 4)
    build_index(collected(str(rows)), encoder, counting)
    assert len(made) == 3
    (rows.parent / "gone.mp4").write_bytes(clip.read_bytes())  # of the first chunk
    index = build_index(collected(str(rows)), encoder, counting)
    assert len(made) == 4 and 3 in index.indices_S
    build_index(collected(str(rows)), encoder, counting)
    assert len(made) == 4
    build_index(collected(str(rows)), Encoder(processor, POLICY, max_tokens=99), counting)
    assert len(made) == 7
    os.utime(rows)
    build_index(collected(str(rows)), encoder, counting)
    assert len(made) == 10


def test_sizes_depend_on_the_limits_of_a_sample_too(encoder, processor):
    assert Encoder(processor, POLICY).identity == encoder.identity
    assert Encoder(processor, POLICY, limits=SampleLimits(gib=1.0)).identity != encoder.identity


def test_data_of_which_other_answers_are_learned_are_other_data(rows, encoder):
    before = build_index(collected(str(rows)), encoder, QUIET)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for line in lines:  # a second answer, which is learned from row 1 on
        line["conversations"] += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "no", "weight": 1}]
    digests = []
    for weight in (1, 0):
        lines[0]["conversations"][-1]["weight"] = weight
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        digests.append(build_index(collected(str(rows)), encoder, QUIET).digest)
    assert len({*digests, before.digest}) == 3


def test_earlier_versions_are_removed_once_no_start_can_be_reading_them(rows, encoder, processor, tmp_path):
    def kept():
        return set((tmp_path / ".evs" / f"v{VERSION}").iterdir())

    other = Encoder(processor, POLICY, max_tokens=99)
    for each in (encoder, other):
        build_index(collected(str(rows)), each, QUIET)
    before = kept()
    rows.write_text(rows.read_text().replace("What 2?", "Why 2?"))
    (tmp_path / "gone.mp4").write_bytes(b"no video")
    build_index(collected(str(rows)), encoder, QUIET)
    assert kept() > before and len(kept()) == len(before) + 2  # rows and index
    for path in before:
        os.utime(path, (1, 1))
    build_index(collected(str(rows)), encoder, QUIET)
    assert len(before - kept()) == 2 and len(kept()) == 3  # the other encoder's is left alone
    (tmp_path / "gone.mp4").unlink()
    build_index(collected(str(rows)), encoder, QUIET)
    assert len(kept()) == 4


def test_a_part_that_is_cut_off_is_made_anew(rows, encoder, tmp_path, capsys):
    whole = build_index(collected(str(rows)), encoder, QUIET)
    (part,) = tmp_path.glob(".evs/*/*.index")
    part.write_bytes(part.read_bytes()[:-99])
    for _ in range(2):
        assert build_index(collected(str(rows)), encoder, QUIET).digest == whole.digest
        assert f"{part}: truncated or corrupt part of the index: rebuilding it" in capsys.readouterr().out


def test_rows_that_are_too_long_are_left_out(rows, processor):
    with pytest.raises(ValueError, match=r"none of 9 samples is usable; first reason: .*data.max_tokens=9"):
        build_index(collected(str(rows)), Encoder(processor, POLICY, max_tokens=9), QUIET)


def test_without_an_encoder_media_are_not_looked_at(rows):
    index = build_index(collected(str(rows)), None, QUIET)
    assert len(index) == 8 and not index.sizes.fixed_S.any()


def test_what_another_version_kept_is_named(rows, encoder, capsys, tmp_path):
    (tmp_path / ".evs" / "v0").mkdir(parents=True)
    build_index(collected(str(rows)), encoder, QUIET)
    assert f"has format version 0, not {VERSION}: rebuilding it" in capsys.readouterr().out


def test_a_source_without_usable_rows_is_named(rows, encoder, tmp_path):
    (tmp_path / "empty.jsonl").write_text(json.dumps(row("gone.mp4", 1)) + "\n")
    collection = collected({str(rows): 1, str(tmp_path / "empty.jsonl"): 2})
    index = build_index(collection, encoder, QUIET)
    with pytest.raises(ValueError, match=r"source .*empty.jsonl is empty: none of its 1 rows can be used"):
        collection.mixture(index.indices_S)


def test_samples_and_index_travel_to_workers(rows, encoder):
    collection = collected(str(rows))
    again = pickle.loads(pickle.dumps(collection.samples))
    assert again[0] == collection.samples[0]
