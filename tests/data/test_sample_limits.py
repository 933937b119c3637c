import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data.encoding.encoder import Encoder
from data.encoding.size_prediction import predict_sizes
from data.loader import shard_loader, step_loader
from data.media.container import probe
from data.sample_limits import OutOfTime, SampleLimits, SampleTimeout, guarded
from data.sources.collection import ReadOptions
from data.sources.index import build_index
from data.types import ImageRef, MediaError, RowError, Sample, Turn, VideoRef
from tests.data.conftest import POLICY
from tests.data.reading import InOrder, collected


@pytest.fixture
def wide(tmp_path):
    """A picture of an aspect ratio that the processors refuse."""
    Image.new("RGB", (2010, 10)).save(tmp_path / "wide.png")
    return Sample("w", (Turn("user", (ImageRef(str(tmp_path / "wide.png")), "What?")), Turn("assistant", ("a line",))))


def test_a_picture_that_the_processor_refuses_is_left_out_of_training_and_evaluation(wide, samples, encoder):
    asked = [samples[0], wide]
    plan = InOrder(((0, 1),))
    for loader in (
        step_loader(asked, encoder, plan, first_step=0, last_step=1),
        shard_loader(asked, encoder, [[0, 1]]),
    ):
        (step,) = loader
        assert step.batches[0].ids == ("0",)
        assert step.quarantined[0].reason.startswith("w: ValueError: absolute aspect ratio must be smaller than 200")


def test_a_picture_that_the_processor_refuses_is_left_out_of_the_index(wide, encoder, tmp_path):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "a line"}]
    rows = [{"id": name, "image": f"{name}.png", "conversations": turns} for name in ("wide", "square")]
    Image.new("RGB", (64, 64)).save(tmp_path / "square.png")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    index = build_index(collected(str(tmp_path / "rows.json")), encoder, ReadOptions(progress=False))
    assert [lost.id for lost in index.quarantined] == ["wide"] and "aspect ratio" in index.quarantined[0].reason


@pytest.mark.parametrize(
    "error",
    [struct.error("unpack requires 4 bytes\nof 2"), MemoryError(), SyntaxError("not a PNG file"), KeyError("tag")],
    ids=lambda error: type(error).__name__,
)
def test_every_exception_becomes_one_line_with_its_class(error):
    with pytest.raises(MediaError) as reason, guarded("a"):
        raise error
    assert str(reason.value).startswith(f"a: {type(error).__name__}") and "\n" not in str(reason.value)


def test_what_says_why_goes_through_and_an_interrupt_is_none(samples):
    for error in (RowError("row 3: is empty"), MediaError("a.mp4: is empty"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as reason, guarded("a"):
            raise error
        assert reason.value is error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_takes_too_long_is_left_out_and_the_next_has_its_own_time(processor, samples, footage, workers):
    slow = replace(
        samples[0], turns=(Turn("user", (VideoRef(str(footage["bigbuckbunny"])), "What?")), *samples[0].turns[1:])
    )
    quick = Sample("quick", (Turn("user", ("What?",)), Turn("assistant", ("yes",))))
    encoder = Encoder(processor, replace(POLICY, fps=30, max_frames=200), limits=SampleLimits(seconds=0.05))
    loader = shard_loader([slow, quick], encoder, [[0, 1, 1]], workers=workers)
    (step,) = loader
    assert step.batches[0].ids == ("quick", "quick")
    assert [lost.reason.split(";")[0] for lost in step.quarantined] == ["0: took longer than data.sample_seconds=0.05"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_interruption_that_a_library_swallows_comes_again():
    with pytest.raises(MediaError, match="took longer"), guarded("a", 0.01):
        for _ in range(2):
            with contextlib.suppress(Exception):
                signal.pause()
        signal.pause()


def test_what_a_library_says_when_it_is_interrupted_is_not_the_reason():
    with pytest.raises(OutOfTime, match=r"^a: took longer"), guarded("a", 0.01), guarded("file"):
        try:
            signal.pause()
        except SampleTimeout:
            raise OSError("Invalid data found") from None


def test_media_that_together_take_more_memory_than_a_sample_may_are_left_out(clip, processor):
    film = VideoRef(str(clip))
    both = Sample("both", (Turn("user", (film, film, "What?")), Turn("assistant", ("yes",))))
    one = Sample("one", (Turn("user", (film, "What?")), Turn("assistant", ("yes",))))
    encoder = Encoder(processor, POLICY, limits=SampleLimits(gib=1.5 * 4 * 48 * 64 * 3 / 2**30))
    headers = {film: probe(film)}
    planned, refused = predict_sizes(encoder, [one, both], headers)
    assert len(encoder.encode(one).input_ids_N) and planned.frames == 4
    assert isinstance(refused, MediaError) and "data.sample_gib" in str(refused)
    with pytest.raises(MediaError, match=r"clip.mp4: .*data.sample_gib"):
        encoder.encode(both)


@pytest.mark.slow
def test_a_timeout_that_comes_again_while_the_first_is_handled_does_not_escape(tmp_path):
    """In a process of its own, because escaped timeouts would end this one."""
    (tmp_path / "program.py").write_text(
        "import time\n"
        "from data import sample_limits\n"
        "sample_limits.REPEAT_SECONDS = 1e-4\n"
        "for _ in range(300):\n"
        "    try:\n"
        "        with sample_limits.guarded('a', 0.001):\n"
        "            time.sleep(1)\n"
        "    except sample_limits.OutOfTime:\n"
        "        pass\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
