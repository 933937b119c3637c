import json
import struct

import pytest
from PIL import Image

from data.batching import Plan
from data.containment import contained
from data.loader import shard_loader, step_loader
from data.sources.collection import Reading
from data.sources.index import build_index
from data.types import ImageRef, MediaError, RowError, Sample, Turn
from tests.data.reading import collected


@pytest.fixture
def wide(tmp_path):
    """A picture of an aspect ratio that the processors refuse."""
    Image.new("RGB", (2010, 10)).save(tmp_path / "wide.png")
    return Sample("w", (Turn("user", (ImageRef(str(tmp_path / "wide.png")), "What?")), Turn("assistant", ("a line",))))


def test_a_picture_that_the_processor_refuses_is_left_out_of_training_and_evaluation(wide, samples, encoder):
    asked = [samples[0], wide]
    plan = Plan(2, 2, 1, 1, 0, seed=0, shuffle=False)
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
    index = build_index(collected(str(tmp_path / "rows.json")), encoder, Reading(progress=False))
    assert [lost.id for lost in index.lost] == ["wide"] and "aspect ratio" in index.lost[0].reason


@pytest.mark.parametrize(
    "error",
    [struct.error("unpack requires 4 bytes\nof 2"), MemoryError(), SyntaxError("not a PNG file"), KeyError("tag")],
    ids=lambda error: type(error).__name__,
)
def test_every_exception_becomes_one_line_with_its_class(error):
    with pytest.raises(MediaError) as reason, contained("a"):
        raise error
    assert str(reason.value).startswith(f"a: {type(error).__name__}") and "\n" not in str(reason.value)


def test_what_says_why_goes_through_and_an_interrupt_is_none(samples):
    for error in (RowError("row 3: is empty"), MediaError("a.mp4: is empty"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as reason, contained("a"):
            raise error
        assert reason.value is error
