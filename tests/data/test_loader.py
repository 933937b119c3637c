import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.batching.plans import Plan, shards
from data.encoding.encoder import Encoder
from data.encoding.size_prediction import predict_sizes
from data.loader import PredictedTokens, shard_loader, step_loader
from data.media.images import probe_image
from data.sizes import gather
from data.types import ImageRef, Sample, Turn
from tests.data.conftest import POLICY
from tests.data.reading import InOrder


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
    plan = InOrder(((0, 1, 2), (3, 4, 5), (6, 7, 8)))
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


@pytest.mark.parametrize(("strict", "lost"), [(True, ["a"]), (False, [])])
def test_a_sample_that_decodes_to_more_tokens_than_a_budget_was_planned_for_is_left_out(
    encoder, tmp_path, strict, lost
):
    """Of three pictures that change after planning, one grows, one shrinks and one stays."""
    turns = [
        (Turn("user", (ImageRef(str(tmp_path / f"{id}.png")), "What?")), Turn("assistant", ("x",))) for id in "abc"
    ]
    asked = [Sample(id, each) for id, each in zip("abc", turns)]
    for id in "abc":
        Image.new("RGB", (256, 256)).save(tmp_path / f"{id}.png")
    sizes = gather(predict_sizes(encoder, asked, {ref: probe_image(ref) for sample in asked for ref in sample.media}))
    Image.new("RGB", (384, 384)).save(tmp_path / "a.png")
    Image.new("RGB", (128, 128)).save(tmp_path / "b.png")
    span = {"first_step": 0, "last_step": 1, "planned": PredictedTokens(sizes.unpruned(), strict)}
    (step,) = step_loader(asked, encoder, InOrder(((0, 1, 2),)), **span)
    assert step.resized == 2 and [each.id for each in step.quarantined] == lost
    assert all("were predicted from the headers" in each.reason for each in step.quarantined)


def test_shards_are_loaded_one_batch_a_step(samples, encoder):
    loaded = list(shard_loader(samples, encoder, shards(len(samples), 4, 2, 0)))
    assert [step.batches[0].ids for step in loaded] == [("0", "1", "2"), ("8",)]


def test_loading_draws_nothing_from_the_global_generator(samples, encoder):
    before = torch.get_rng_state()
    list(step_loader(samples, encoder, Plan(9, 3, 1, 1, 0, seed=0), first_step=0, last_step=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_encoders_travel_to_spawned_workers(encoder, samples):
    again = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(again.encode(samples[0]).input_ids_N, encoder.encode(samples[0]).input_ids_N)


@pytest.mark.gpu
def test_batches_are_pinned_where_there_is_a_gpu(samples, encoder):
    (step,) = step_loader(samples[:1], encoder, Plan(1, 1, 1, 1, 0, seed=0), first_step=0, last_step=1)
    assert step.batches[0].pixel_values_videos.is_pinned() and step.batches[0].input_ids_N.is_pinned()


@pytest.mark.slow
def test_workers_outlast_the_signals_that_end_a_job(samples, encoder):
    """A scheduler signals all processes, and the run needs its workers until the end of its step."""
    steps = iter(
        step_loader(samples, encoder, Plan(len(samples), 1, 1, 1, 0, seed=0), first_step=0, last_step=6, workers=1)
    )
    next(steps)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
    assert len(list(steps)) == 5


@pytest.mark.slow
def test_a_process_that_fails_while_its_workers_live_ends(tmp_path):
    """Workers ignore SIGTERM, with which multiprocessing ends them, and waits for, when the process exits."""
    (tmp_path / "program.py").write_text(
        "from types import SimpleNamespace\n"
        "from data.loader import shard_loader\n"
        "steps = iter(shard_loader([], SimpleNamespace(filler_token=0), [[]] * 9, workers=1))\n"
        "next(steps)\n"
        "raise KeyError('an error whose traceback keeps the loader')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, tmp_path / "program.py"], env=environment, stderr=errors, start_new_session=True
        )
    try:
        assert process.wait(timeout=60) == 1 and "KeyError" in (tmp_path / "errors").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
