"""What is shown before training is what the model reads: nothing in it is a guess."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from data.encoding.encoder import Encoder
from data.media.frames import FramePolicy
from data.types import IGNORE, ImageRef, Sample, Turn, VideoRef
from evs import FrameDelta
from tests.conftest import FAMILIES
from train.preview import first_row, parameters


@pytest.fixture(params=FAMILIES)
def encoder(request, checkpoint) -> Encoder:
    return Encoder(AutoProcessor.from_pretrained(checkpoint(request.param)), FramePolicy(max_pixels=64 * 64))


@pytest.fixture
def sample(clips, tmp_path) -> Sample:
    """Two clips and an image between them, two answers."""
    Image.effect_noise((70, 50), 60).save(tmp_path / "a.png")
    first = Turn("user", (VideoRef(str(clips[0])), ImageRef(str(tmp_path / "a.png")), "What?"))
    second = Turn("user", (VideoRef(str(clips[1])), "And here?"))
    return Sample("s7", (first, Turn("assistant", ("A ring",)), second, Turn("assistant", ("Two",))))


def test_the_shown_row_names_media_answers_and_tokens_as_encoded(encoder, sample):
    text, encoding = first_row(encoder, [sample], [0.0, 0.5, 0.75], FrameDelta()), encoder.encode(sample)
    grids = (encoding.video_grid_thw_V3 // torch.tensor([1, encoder.merge, encoder.merge])).tolist()
    assert re.findall(r"<video (\d+) grids (\d+)x(\d+), (\d+) frames", text) == [
        (str(t), str(h), str(w), str(2 * t)) for t, h, w in grids
    ]
    assert len(re.findall(r"<image \d+x\d+>", text)) == 1 and "_pad|>" not in text
    assert re.findall(r">>(.*?)<<", text) == ["labelled", "A ring<|im_end|>", "Two<|im_end|>"]
    labelled = int((encoding.labels_N != IGNORE).sum())
    fixed = len(encoding.input_ids_N) - sum(t * h * w for t, h, w in grids)
    kept = fixed + sum(max(h * w, int(h * w * t * 0.25)) for t, h, w in grids)
    assert f"{len(encoding.input_ids_N)} tokens, {labelled} of them labelled" in text and f"{kept} at rate 0.75" in text


def test_text_outside_media_is_shown_as_it_is_read(encoder, sample):
    shown = first_row(encoder, [sample], [0.0], FrameDelta())
    assert "user\n" in shown and "What?<|im_end|>\n<|im_start|>assistant\n>>A ring<|im_end|><<\n" in shown


def test_a_sample_that_cannot_be_read_is_passed_over(encoder, sample, tmp_path):
    broken = Sample("broken", (Turn("user", (VideoRef(str(tmp_path / "none.mp4")),)), Turn("assistant", ("no",))))
    assert first_row(encoder, [broken, sample], [0.5], FrameDelta()).startswith("row s7")
    assert "none of" in first_row(encoder, [broken], [0.5], FrameDelta())


def test_parameters_are_counted_by_tower(checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("qwen2_5_vl"))
    model.model.visual.requires_grad_(False)
    text = parameters(model)
    total, frozen = (sum(p.numel() for p in part.parameters()) for part in (model, model.model.visual))
    assert text.startswith(f"trained parameters: {total - frozen:,} of {total:,} (vision 0 of ")
