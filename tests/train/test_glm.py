"""GLM from rows to an exported checkpoint, on tiny models."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from data.encoding.size_prediction import predict_size
from data.media.container import probe
from data.media.frames import FramePolicy
from data.types import Sample, Turn, VideoRef
from evs.policy import read
from scripts import export, generate
from tests.evs.models import GLM
from tests.runs import trained
from train.export.weights import weight_shapes
from train.model import encoder_of

POLICY = FramePolicy(fps=2.0, max_frames=8, total_pixels=8 * 84 * 112)


@pytest.fixture(params=GLM)
def family(request):
    return request.param


@pytest.fixture
def sample(clips):
    question, again = (Turn("user", (VideoRef(str(clips[0])), "Which color?")), Turn("user", ("Sure?",)))
    return Sample("x", (question, Turn("assistant", ("red",)), again, Turn("assistant", ("yes",))))


def test_tokens_and_patches_are_the_library_s(checkpoint, family, sample):
    encoder, processor = encoder_of(str(checkpoint(family)), POLICY), AutoProcessor.from_pretrained(checkpoint(family))
    got, (clip,) = encoder.encode(sample), encoder.read(sample)[0]
    metadata = {"fps": clip.fps, "frames_indices": clip.frame_indices_T.tolist(), "total_num_frames": clip.frames}
    theirs = processor(
        text=encoder.chat(sample),
        videos=[torch.from_numpy(clip.frames_THWC).permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        videos_kwargs={"size": dict(encoder.video_processor.size), "do_sample_frames": False},
        return_tensors="pt",
    )
    assert got.input_ids_N.tolist() == theirs.input_ids[0].tolist()
    assert got.video_grid_thw_V3.tolist() == theirs.video_grid_thw.tolist()
    mean, std = (torch.tensor(values)[:, None] for values in got.video_normal)
    normal = ((got.pixel_values_videos.float() / 255).unflatten(1, (3, -1)) - mean) / std
    torch.testing.assert_close(normal.flatten(1), theirs.pixel_values_videos, atol=1e-5, rtol=1e-5)


def test_the_cost_is_that_of_the_encoding_and_each_answer_ends_with_the_next_role(checkpoint, family, sample):
    encoder = encoder_of(str(checkpoint(family)), POLICY)
    got, cost = encoder.encode(sample), predict_size(encoder, sample, {part: probe(part) for part in sample.media})
    ((grids, tokens),) = cost.videos
    assert (cost.fixed + grids * tokens, cost.patches) == (len(got.input_ids_N), len(got.pixel_values_videos))
    assert encoder.processor.tokenizer.decode(got.labels_N[got.labels_N >= 0]) == "red<|user|>yes<|user|>"


def test_frames_are_the_library_s_up_to_the_greatest_number(checkpoint, family, sample):
    encoder = encoder_of(str(checkpoint(family)), FramePolicy(fps=2.0, max_frames=4))
    (clip,) = encoder.read(sample)[0]
    own = AutoProcessor.from_pretrained(checkpoint(family)).video_processor
    own.max_duration = 2
    metadata = probe(sample.media[0])
    metadata = type("Metadata", (), {"total_num_frames": metadata.frames, "fps": metadata.fps, "duration": None})
    metadata.duration = metadata.total_num_frames / metadata.fps
    assert (
        clip.frame_indices_T.tolist() == sorted({*own.sample_frames(metadata, fps=2.0).tolist()})
        and len(clip.frame_indices_T) == 4
    )


def test_a_limit_for_one_frame_is_refused(checkpoint, family):
    with pytest.raises(ValueError, match="max_pixels=50000: GLM has no limit for one frame; set total_pixels"):
        encoder_of(str(checkpoint(family)), FramePolicy(max_pixels=50000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("glm4v", []),
        ("glm4v", ["method=pixel_delta"]),
        ("glm4v_moe", []),
        ("glm4v_moe", ["model.lora.r=4", "model.lora.alpha=8"]),
    ],
    indirect=["family"],
)
def test_a_run_trains_evaluates_exports_and_answers(words, checkpoint, questions, clips, family, how, tmp_path, capsys):
    sizes = ["data.max_pixels=null", "data.total_pixels=75264", "train.steps=2"]
    more = [*sizes, f"data.eval={questions}", "eval.limit=1", "optim.lr=0.01", *how]
    trained(*words(*more, family=family, experiment="glm_evs_uptrain"))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/accuracy" in name for record in records for name in record)
    out = tmp_path / "out"
    export.main(export.Options(run=str(tmp_path / "run"), out=str(out)))
    assert weight_shapes(out) == weight_shapes(checkpoint(family))
    ours, theirs = (
        AutoModelForImageTextToText.from_pretrained(path).state_dict() for path in (out, checkpoint(family))
    )
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed and not any("visual.blocks" in name for name in changed)
    assert read(out).total_pixels == AutoProcessor.from_pretrained(out).video_processor.size["longest_edge"] == 75264
    capsys.readouterr()
    generate.main(
        generate.Options(str(out), "What?", video=str(clips[0]), rate=0.5, max_new_tokens=3, json=True, device="cpu")
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["kept_tokens"] < answer["prompt_tokens"]
