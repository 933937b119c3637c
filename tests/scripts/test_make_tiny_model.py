"""The tiny checkpoints are stock Hugging Face folders with the traits of the hub's originals."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from scripts.make_tiny_model import FAMILIES, make
from scripts.tiny.tokenizer import SPECIALS

SMALL = {"text_width": 64, "text_layers": 2, "text_heads": 2, "text_mlp": 192, "vision_width": 32, "vision_heads": 2}
CHAT = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which color?"}]},
    {"role": "assistant", "content": "red"},
]


@pytest.fixture(scope="module", params=[name for name in FAMILIES if name.startswith("qwen")])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return make(family, tmp_path_factory.mktemp(family), **SMALL)


def test_it_reads_a_video_and_generates(folder):
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    text = processor.apply_chat_template(CHAT, tokenize=False)
    metadata = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "duration": 2.0}
    video = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    x = processor(text=text, videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
    assert (x.input_ids == model.config.video_token_id).sum() == x.video_grid_thw.prod() // 4
    assert model(**x, labels=x.input_ids).loss.isfinite()
    assert model.generate(**x, max_new_tokens=2).shape[1] == x.input_ids.shape[1] + 2


def test_the_seed_alone_decides_the_weights(family, folder, tmp_path):
    again, other = make(family, tmp_path / "again", **SMALL), make(family, tmp_path / "other", seed=1, **SMALL)
    weights = (folder / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == weights
    assert (other / "model.safetensors").read_bytes() != weights
    assert (again / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_images_and_videos_are_normalised_alike(folder):
    processor = AutoProcessor.from_pretrained(folder)
    for name in ("image_mean", "image_std", "patch_size", "merge_size"):
        assert getattr(processor.image_processor, name) == getattr(processor.video_processor, name)


def test_the_tokenizer_is_lossless_and_knows_the_special_tokens(folder):
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    text = "Ünïcode 123, don't!\n\n  <|im_start|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert [len(tokenizer(token).input_ids) for token in (*SPECIALS, "red", " red")] == [1] * (len(SPECIALS) + 2)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_the_vision_tower_mixes_its_kinds_of_blocks(family, folder):
    vision = AutoModelForImageTextToText.from_pretrained(folder).config.vision_config
    if family == "qwen2_5_vl":
        assert 0 < len(vision.fullatt_block_indexes) < vision.depth
    elif family.startswith("qwen3_vl"):
        assert len(vision.deepstack_visual_indexes) > 0


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"], scope="module")
def test_a_hybrid_has_both_kinds_of_layers_and_writes_an_empty_thought(folder):
    assert AutoModelForImageTextToText.from_pretrained(folder).config.text_config.layer_types == [
        "linear_attention",
        "full_attention",
    ]
    assert "<think>\n\n</think>\n\nred" in AutoProcessor.from_pretrained(folder).apply_chat_template(CHAT)


def test_an_unknown_family_names_the_supported_ones(tmp_path):
    with pytest.raises(ValueError, match="'llava'; supported: qwen2_5_vl, qwen3_vl, qwen3_vl_moe"):
        make("llava", tmp_path)
