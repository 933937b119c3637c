"""A checkpoint that drops tokens before the tower: a real vLLM's tower is given the survivors alone, or it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from transformers import AutoConfig

from scripts.check_serving import Options, check
from scripts.make_tiny_model import make
from scripts.serving.cases import CASES
from tests.serving.conftest import BEFORE, drive

pytestmark = pytest.mark.serving

RATES = [0.0, 0.5, 0.75, 0.9]
# name: (what was trained, arguments of the server, what it says)
REFUSED = {
    "block": (replace(BEFORE, prune_at=2), {}, "prune_at=2, but the server's tower of"),
    "vidcom2": (BEFORE, {"video_pruning_method": "vidcom2"}, "vidcom2"),
    "shards": (BEFORE, {"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data does not shard"),
    "embeds": (BEFORE, {"enable_mm_embeds": True}, "leave --enable-mm-embeds out"),
    "normalised": (BEFORE, {"mm_device_do_normalize": False}, "leave --mm-device-do-normalize on"),
}


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A function from a policy to the checkpoint that has it."""

    def copy(policy, name="served"):
        policy.write(shutil.copytree(checkpoint, tmp_path / name))
        return str(tmp_path / name)

    return copy


def test_before_tower_a_server_keeps_the_same_units_and_answers_alike(copied, environment) -> None:
    verdicts = check(Options(copied(BEFORE), environment("0.32.0"), RATES, chunks=[0, 64]))
    assert len(verdicts) == len(CASES) * len(RATES) * 2
    same(verdicts)


def test_before_tower_an_older_server_does_or_says_which_one_does(copied, checkpoint, environment) -> None:
    options = Options(copied(BEFORE), environment("0.31.0"), [0.0, 0.75], chunks=[0, 64])
    if AutoConfig.from_pretrained(checkpoint).model_type == "qwen2_5_vl":
        same(check(options))
        return
    with pytest.raises(ValueError, match="normalises those of Qwen3VLForConditionalGeneration before: install vLLM"):
        check(options)


def test_before_tower_a_mixture_of_experts_is_served_alike(environment, tmp_path) -> None:
    model, cases = make("qwen3_vl_moe", tmp_path), ["square", "two videos", "video then image"]
    BEFORE.write(model)
    verdicts = check(Options(str(model), environment("0.32.0"), [0.0, 0.75], cases, chunks=[0, 64]))
    assert len(verdicts) == len(cases) * 2 * 2
    same(verdicts)


def same(verdicts) -> None:
    """Scores are integers: no server may keep another unit, not even of equal score."""
    assert {key: verdict.text for key, verdict in verdicts.items() if not verdict.agrees or verdict.ties} == {}
    assert all(verdict.kept for (_, _, rate, _), verdict in verdicts.items() if rate)


def test_before_tower_a_server_that_cannot_refuses_in_one_line(copied, environment, tmp_path) -> None:
    frames = {"media_io_kwargs": {"video": {"num_frames": -1}}}
    common = {"dtype": "float32", "video_pruning_rate": 0.5, "enforce_eager": True, **frames}
    asked = [{"model": copied(BEFORE), **common}]
    asked += [{"model": copied(policy, name), **common, **more} for name, (policy, more, _) in REFUSED.items()]
    started, *refused = drive(environment("0.32.0"), tmp_path / "job", {"configurations": asked})
    assert started == {"error": "", "warnings": []}
    for answer, (_, _, words) in zip(refused, REFUSED.values(), strict=True):
        assert words in answer["error"]
