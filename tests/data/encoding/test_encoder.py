import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from data.collate import collate
from data.encoding.encoder import Encoder, TooLong
from data.encoding.size_prediction import predict_size
from data.media.container import probe
from data.media.frames import FramePolicy
from data.media.processor import CALL
from data.types import IGNORE, ImageRef, RowError, Sample, Turn, VideoRef, VideoSettings
from evs.families.mrope.fast_tower import normalised
from scripts.make_tiny_model import make
from tests.data import videos
from tests.evs.models import QWEN

POLICY = FramePolicy(fps=2.0, min_pixels=56 * 56, max_pixels=64 * 64)


@pytest.fixture
def sample(clip, footage, tmp_path):
    """Two videos and an image between them, two questions."""
    Image.effect_noise((70, 50), 60).save(tmp_path / "a.png")
    first = Turn("user", (VideoRef(str(clip)), ImageRef(str(tmp_path / "a.png")), "What?\nA. red\nB. blue"))
    second = Turn("user", (VideoRef(str(footage["bikes"]), 1.0, 5.0), "And here?"))
    return Sample("s", (first, Turn("assistant", ("B",)), second, Turn("assistant", ("a ring",))))


def test_a_sample_is_what_the_whole_processor_makes_of_it(processor, sample):
    encoder = Encoder(processor, POLICY)
    clips, images = encoder.read(sample)
    chosen = encoder.video_processor
    got = encoder.encode(sample)
    assert [len(clip.times_T) for clip in clips] == [8, 8]
    messages = [
        {
            "role": "user",
            "content": [{"type": "video"}, {"type": "image"}, {"type": "text", "text": sample.turns[0].parts[2]}],
        },
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "And here?"}]},
        {"role": "assistant", "content": "a ring"},
    ]
    processor = copy.copy(processor)
    processor.video_processor = chosen
    stock = processor(
        text=[processor.apply_chat_template(messages, tokenize=False)],
        images=images,
        videos=[clip.frames_THWC for clip in clips],
        video_metadata=[
            {"total_num_frames": c.frames, "fps": c.fps, "frames_indices": c.frame_indices_T} for c in clips
        ],
        videos_kwargs={"do_sample_frames": False},
        return_tensors="pt",
    )
    assert torch.equal(got.input_ids_N, stock["input_ids"][0])
    assert torch.equal(got.image_grid_thw_I3, stock["image_grid_thw"])
    assert torch.equal(got.video_grid_thw_V3, stock["video_grid_thw"])
    assert got.pixel_values.dtype == got.pixel_values_videos.dtype == torch.uint8
    assert torch.equal(normalised(got.pixel_values, got.image_normal), stock["pixel_values"])
    assert torch.equal(normalised(got.pixel_values_videos, got.video_normal), stock["pixel_values_videos"])


def test_only_answers_are_labelled(processor, sample):
    got = Encoder(processor, POLICY).encode(sample)
    labelled = got.labels_N[got.labels_N != IGNORE]
    assert processor.tokenizer.decode(labelled) == "B<|im_end|>a ring<|im_end|>"
    assert [len(choice) for choice in got.choices] == [2, 0]


def encoded(encoder, path):
    """(clip, encoding, timestamps written into the prompt; Qwen2.5-VL writes none)."""
    sample = Sample("v", (Turn("user", (VideoRef(str(path)), "What?")), Turn("assistant", ("A dog.",))))
    ((clip,), _), got = encoder.read(sample), encoder.encode(sample)
    return clip, got, re.findall(r"<([0-9.]+) seconds>", encoder.processor.tokenizer.decode(got.input_ids_N))


@pytest.mark.parametrize("times", ["server", "real"])
def test_the_model_reads_the_servers_times_or_the_real_ones(processor, tmp_path, times):
    path = videos.write(tmp_path / "vfr.mp4", [0.0, 0.4, 1.0, 1.2, 2.0, 4.0], bf=0)
    clip, got, stamps = encoded(Encoder(processor, replace(POLICY, fps=1.0, min_frames=6, times=times)), path)
    assert clip.times_T.tolist() == pytest.approx([0.0, 0.4, 1.0, 1.2, 2.0, 4.0], abs=1e-3)
    real = [clip.times_T[i : i + 2].mean() for i in (0, 2, 4)]
    server = [(i + 0.5) / clip.fps for i in (0, 2, 4)]
    assert stamps in ([], [f"{time:.1f}" for time in (server if times == "server" else real)])
    seconds = 2 / clip.fps if times == "server" else 2 * (4.0 + 1 / clip.fps) / 6
    assert got.second_per_grid_V.dtype == torch.float64
    assert got.second_per_grid_V.tolist() == pytest.approx([seconds], rel=1e-3)


def test_at_a_constant_rate_seconds_per_grid_are_the_servers(processor, clip):
    _, got, _ = encoded(Encoder(processor, POLICY), clip)
    assert got.second_per_grid_V.tolist() == [2 / (8 / 100 * 25.0)]  # patch / sampled fps


def test_an_odd_number_of_frames_is_padded_as_the_processor_does(processor, tmp_path):
    path = videos.write(tmp_path / "odd.mp4", [i / 25 for i in range(63)])
    encoder = Encoder(processor, POLICY)
    clip, got, _ = encoded(encoder, path)
    grids = int(got.video_grid_thw_V3[0, 0])
    assert grids == -(-len(clip.frame_indices_T) // 2)
    ref = VideoRef(str(path))
    sample = Sample("v", (Turn("user", (ref, "What?")), Turn("assistant", ("A dog.",))))
    size = predict_size(encoder, sample, {ref: probe(ref)})
    (t, h, w) = got.video_grid_thw_V3[0].tolist()
    assert size.videos == ((t, h * w // 4),) and size.patches == len(got.pixel_values_videos)
    assert size.fixed + t * h * w // 4 == len(got.input_ids_N) and size.frames == len(clip.frame_indices_T)


def test_a_prompt_ends_where_the_last_answer_begins(processor, sample):
    encoder = Encoder(processor, POLICY)
    whole, prompt = encoder.encode(sample), encoder.prompt(sample)
    n = len(prompt.input_ids_N)
    assert torch.equal(prompt.input_ids_N, whole.input_ids_N[:n])
    assert whole.labels_N[n] != IGNORE and whole.labels_N[n - 1] == IGNORE
    assert (prompt.labels_N == IGNORE).all() and prompt.choices == ()


def test_a_long_row_is_refused_whole(processor, sample):
    n = len(Encoder(processor, POLICY).encode(sample).input_ids_N)
    assert len(Encoder(processor, POLICY, max_tokens=n).encode(sample).input_ids_N) == n
    with pytest.raises(TooLong, match=f"s: {n} tokens exceed data.max_tokens={n - 1}"):
        Encoder(processor, POLICY, max_tokens=n - 1).encode(sample)


def test_a_template_that_hides_media_is_refused(processor, sample, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", "{{ messages[0].content[-1].text }}")
    with pytest.raises(RowError, match="shows 0 of 2 videos"):
        Encoder(processor, POLICY).encode(sample)


def test_collate_packs_end_to_end_in_order(processor, sample):
    encoder = Encoder(processor, POLICY)
    text = encoder.encode(Sample("t", (Turn("user", ("hi",)), Turn("assistant", ("yes",)))))
    one = encoder.encode(sample)
    batch = collate([one, text, one], filler_token=0)
    n, m = len(one.input_ids_N), len(text.input_ids_N)
    assert batch.ids == ("s", "t", "s") and batch.segment_N.bincount().tolist() == [n, m, n]
    assert torch.equal(batch.input_ids_N[n : n + m], text.input_ids_N)
    assert torch.equal(batch.pixel_values_videos, torch.cat([one.pixel_values_videos] * 2))
    assert batch.video_grid_thw_V3.shape == (4, 3) and batch.image_grid_thw_I3.shape == (2, 3)
    assert len(batch.pixel_values_videos) == batch.video_grid_thw_V3.prod(dim=1).sum()
    assert batch.choices == one.choices + text.choices + one.choices
    assert collate([text], filler_token=0).pixel_values_videos is None


def test_a_batch_of_nothing_is_one_unlabelled_token():
    batch = collate([], filler_token=5)
    assert batch.ids == () and batch.input_ids_N.tolist() == [5] and batch.labels_N.tolist() == [IGNORE]
    assert batch.video_grid_thw_V3.shape == (0, 3) and batch.segment_N.tolist() == [0]


def test_an_image_of_any_shape_is_encoded(processor, tmp_path):
    Image.fromarray(np.zeros((3, 200, 3), np.uint8)).save(tmp_path / "thin.png")
    turns = (Turn("user", (ImageRef(str(tmp_path / "thin.png")), "What?")), Turn("assistant", ("no",)))
    assert Encoder(processor, POLICY).encode(Sample("i", turns)).image_grid_thw_I3.shape == (1, 3)


def test_a_template_without_thoughts_is_asked_for_none(processor, monkeypatch):
    warned = []
    monkeypatch.setattr("transformers.processing_utils.logger.warning", lambda *words: warned.append(words))
    plain = copy.copy(processor)
    plain.chat_template = "{{- messages[0].content[0].text -}}"
    Encoder(plain, POLICY).chat(Sample("p", (Turn("user", ("hi",)),)), generate=True)
    assert not warned


def test_a_thinking_model_is_asked_for_the_answer_at_once(tmp_path):
    thinking = AutoProcessor.from_pretrained(make("qwen3_5", tmp_path))
    text = Encoder(thinking, POLICY).chat(Sample("p", (Turn("user", ("hi",)),)), generate=True)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("family", QWEN)
def test_levels_normalised_on_the_device_are_the_processors_pixels(family, tmp_path, footage):
    processor = AutoProcessor.from_pretrained(make(family, tmp_path))
    processor.image_processor.image_mean, processor.image_processor.image_std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    processor.video_processor.image_mean = [0.4, 0.5, 0.6]
    Image.effect_noise((170, 95), 60).save(tmp_path / "a.png")
    question = Turn("user", (ImageRef(str(tmp_path / "a.png")), VideoRef(str(footage["bikes"]), 1.0, 3.0), "What?"))
    encoder, sample = Encoder(processor, POLICY), Sample("s", (question, Turn("assistant", ("B",))))
    batch, (clips, images) = collate([encoder.encode(sample)], filler_token=0), encoder.read(sample)
    frames = torch.from_numpy(clips[0].frames_THWC).permute(0, 3, 1, 2)
    own = {"do_rescale": True, "do_normalize": True, "return_tensors": "pt"}
    stock_video = encoder.video_processor(frames, **CALL | own)["pixel_values_videos"]
    stock_image = processor.image_processor(images, **own)["pixel_values"]
    assert torch.equal(normalised(batch.pixel_values_videos, batch.video_normal), stock_video)
    assert torch.equal(normalised(batch.pixel_values, batch.image_normal), stock_image)
    assert batch.pixel_values.dtype == batch.pixel_values_videos.dtype == torch.uint8


def test_a_video_with_its_own_settings_needs_no_processor_call_in_a_forked_worker(encoder, monkeypatch):
    """A forked worker that computes on tensors of some size may crash once its parent has used PyTorch's threads."""

    def fail(*_, **__):
        raise AssertionError("the video processor was called")

    monkeypatch.setattr(type(encoder.processor.video_processor), "__call__", fail)
    for settings in (None, VideoSettings(fps=5.5), VideoSettings(max_pixels=3136)):
        assert encoder.video_rule(VideoRef("a.mp4", settings=settings)).processor is not None
