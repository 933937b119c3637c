"""A checkpoint that drops tokens before the tower: a real vLLM's tower is given the survivors alone, or it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from evs.policy import Policy
from scripts.check_serving import Options, check
from tests.serving.conftest import drive

pytestmark = pytest.mark.serving

TRAINED = Policy(method="pixel_delta", prune_at="input", scorer_dtype=None)
CASES = ["landscape", "two videos", "video then image"]
# name: (what was trained, arguments of the server, what it says)
REFUSED = {
    "block": (replace(TRAINED, prune_at=2), {}, "prune_at=2, but the server's tower of"),
    "vidcom2": (TRAINED, {"video_pruning_method": "vidcom2"}, "vidcom2"),
    "shards": (TRAINED, {"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data does not shard"),
    "normalised": (TRAINED, {"mm_device_do_normalize": False}, "leave --mm-device-do-normalize on"),
}


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A function from a policy to the checkpoint that has it."""

    def copy(policy, name="served"):
        policy.write(shutil.copytree(checkpoint, tmp_path / name))
        return str(tmp_path / name)

    return copy


def test_before_tower_a_server_keeps_the_same_units_and_answers_alike(copied, environment) -> None:
    rates = [0.0, 0.5, 0.75, 0.9]
    verdicts = check(Options(copied(TRAINED), environment("0.32.0"), rates, CASES))
    assert len(verdicts) == len(CASES) * len(rates)
    assert {key: verdict.text for key, verdict in verdicts.items() if not verdict.agrees} == {}
    assert all(verdict.kept and not verdict.ties for (_, _, rate, _), verdict in verdicts.items() if rate)


def test_before_tower_a_server_that_cannot_refuses_in_one_line(copied, environment, tmp_path) -> None:
    common = {"dtype": "float32", "video_pruning_rate": 0.5, "enforce_eager": True}
    asked = [{"model": copied(TRAINED), **common}]
    asked += [{"model": copied(policy, name), **common, **more} for name, (policy, more, _) in REFUSED.items()]
    started, *refused = drive(environment("0.32.0"), tmp_path / "job", {"configurations": asked})
    assert started == {"error": "", "warnings": []}
    for answer, (_, _, words) in zip(refused, REFUSED.values(), strict=True):
        assert words in answer["error"]
