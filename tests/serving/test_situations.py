"""What serving brings besides one prompt after another: batches, caches, preemption, several workers, odd requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from evs.methods import method_named
from evs.policy import Policy, read
from scripts.check_serving import prepare
from scripts.serving.cases import AFTER, BEFORE, CASES, Case, Video
from scripts.serving.compare import compare
from scripts.serving.ours import STEPS, TOP, Ours
from scripts.serving.prompts import Prompt
from tests.serving.conftest import drive

pytestmark = pytest.mark.serving

RATE, TOLERANCE = 0.5, 1e-3
TOGETHER = [name for name in CASES if name != "64 grids"]


def job(checkpoint: str, prompts: list[Prompt], rounds: list[list[str]], **more: Any) -> dict[str, Any]:
    cases = {prompt.name: prompt.request for prompt in prompts}
    length = max(len(prompt.batch.input_ids_N) for prompt in prompts) + 128
    shape = {
        "model": checkpoint,
        "dtype": "float32",
        "max_model_len": length,
        "rate": RATE,
        "chunk": 0,
        "metrics": False,
    }
    return {**shape, "steps": STEPS, "top": TOP, "cases": cases, "rounds": rounds, "engine": {}, **more}


def differing(
    checkpoint: str, prompts: list[Prompt], served: dict[str, Any], rounds: list[list[str]]
) -> dict[str, str]:
    """The verdicts that do not agree, by round and case."""
    policy = read(checkpoint) or Policy()
    method = method_named(policy.method, prune_at=policy.prune_at)
    ours = Ours(checkpoint, method, "preserve", "float32", "cpu")
    batches = {prompt.name: prompt.batch for prompt in prompts}
    found = {}
    for number, (names, answers) in enumerate(zip(rounds, served["rounds"], strict=True)):
        for name, answer in zip(names, answers, strict=True):
            verdict = compare(ours.answer(name, batches[name], RATE, answer.get("kept", [])), answer, TOLERANCE)
            if not verdict.agrees:
                found[f"{number} {name}"] = verdict.text
    return found


def test_concurrent_ragged_prompts_in_chunks_preempted_and_from_the_prefix_cache(served, environment, tmp_path) -> None:
    prompts = prepare(served, {name: CASES[name] for name in TOGETHER})
    rounds = [TOGETHER, TOGETHER[::-1]]
    cramped = {"enable_prefix_caching": True, "block_size": 32, "num_gpu_blocks_override": 20, "max_num_seqs": 8}
    asked = job(
        served, prompts, rounds, chunk=64, steps=48, metrics=True, engine=cramped | {"disable_log_stats": False}
    )
    media = {key: value for prompt in prompts for key, value in prompt.media.items()}
    answers = drive(environment("0.32.0"), tmp_path / "job", asked, media)
    assert differing(served, prompts, answers, rounds) == {}
    assert answers["meters"]["vllm:num_preemptions"] > 0
    assert answers["meters"]["vllm:prefix_cache_hits"] > 0


def test_two_tensor_parallel_workers_answer_as_one(served, environment, tmp_path) -> None:
    rounds = [["square", "two videos", "image then video"]]
    prompts = prepare(served, {name: CASES[name] for name in rounds[0]})
    media = {key: value for prompt in prompts for key, value in prompt.media.items()}
    asked = job(served, prompts, rounds, chunk=64, engine={"tensor_parallel_size": 2})
    answers = drive(environment("0.32.0"), tmp_path / "job", asked, media)
    assert differing(served, prompts, answers, rounds) == {}


def test_a_video_that_is_encoded_again_keeps_the_same_tokens_until_the_weights_change(
    checkpoint, environment, tmp_path
) -> None:
    (prompt,) = prepare(checkpoint, {"video": CASES["16 grids"]})
    more = {"first": {}, "again": {"remembered": True}, "reloaded": {"remembered": True, "reload": True}}
    asked = job(checkpoint, [prompt], [[name] for name in more], jitter=0.1)
    asked["cases"] = {name: {**prompt.request, **words} for name, words in more.items()}
    answers = drive(environment("0.32.0"), tmp_path / "job", asked, prompt.media)
    (first,), (again,), (reloaded,) = answers["rounds"]
    assert again["kept"] == [] and again["positions"] == first["positions"]
    assert reloaded["kept"] not in ([], first["kept"])  # scored again, and the scores are near enough to differ


def test_a_prefix_hit_on_a_video_that_is_encoded_again_answers_alike(checkpoint, environment, tmp_path) -> None:
    (prompt,) = prepare(checkpoint, {"video": Case((BEFORE, Video("landscape", grids=16)), chat=False)})
    ((key, frames),) = prompt.media.items()
    noise = np.random.default_rng(0).integers(-1, 2, frames.shape)
    still = (np.repeat(frames[:1], len(frames), axis=0) + noise).clip(0, 255).astype(np.uint8)  # scores nearly equal
    caching = {"enable_prefix_caching": True, "block_size": 32, "disable_log_stats": False}
    rounds = [["first"], ["again"], ["again"]]
    asked = job(checkpoint, [prompt], rounds, dtype="bfloat16", jitter=2e-3, metrics=True, engine=caching)
    asked["cases"] = {name: {**prompt.request, "remembered": name == "again"} for name in ("first", "again")}
    answers = drive(environment("0.32.0"), tmp_path / "job", asked, {key: still})
    (first,), *later = answers["rounds"]
    assert all(again["kept"] == [] and again["tokens"] == first["tokens"] for (again,) in later)
    assert answers["meters"]["vllm:prefix_cache_hits"] > 0


def test_a_longer_video_costs_the_hooks_no_more_calls_and_never_waits_for_the_device(
    checkpoint, environment, tmp_path
) -> None:
    cases = {name: CASES[name] for name in ("16 grids", "64 grids")}
    prompts = prepare(checkpoint, cases)
    media = {key: value for prompt in prompts for key, value in prompt.media.items()}
    asked = job(checkpoint, prompts, [[name] for name in cases], count=True, steps=2)
    counts = drive(environment("0.32.0"), tmp_path / "job", asked, media)["counts"]
    short, long = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    assert short == long and {one["hook"] for one in short} >= {"_postprocess_video_embeds_evs"}
    encoded = [call for one in short if one["hook"] == "_postprocess_video_embeds_evs" for call in one["calls"]]
    assert not {"item", "cpu", "nonzero", "__int__", "__bool__", "__float__"} & set(encoded)
    assert encoded.count("tolist") <= 3  # of the grids and times, which are on the host


# name: (what the request asks of the processor, what it says of its video, what it is told)
HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "temporal patches": ({"temporal_patch_size": 4}, {}, "temporal_patch_size=4: leave it out"),
    "temporal patches of videos": ({"videos_kwargs": {"temporal_patch_size": 4}}, {}, "temporal_patch_size=4"),
    "patches of images": ({"images_kwargs": {"patch_size": 28}}, {}, "patch_size=28"),
    "merge": ({"merge_size": 1}, {}, "merge_size=1"),
    "no scope": ({"videos_kwargs": 3}, {}, "videos_kwargs=3"),
    "device": ({"device": "cuda:7"}, {}, "device='cuda:7'"),
    "tensors": ({"return_tensors": "np"}, {}, "return_tensors='np'"),
    "levels": ({"do_rescale": False}, {}, "do_rescale=False"),
    "no fps": ({"fps": 0}, {}, "fps=0: give a positive number"),
    "negative fps": ({"fps": -1.0}, {}, "fps=-1.0"),
    "nan": ({"fps": float("nan")}, {}, "fps=nan"),
    "text": ({"fps": "2"}, {}, "fps='2'"),
    "negative pixels": ({"max_pixels": -1}, {}, "max_pixels=-1"),
    "infinite pixels": ({"size": {"shortest_edge": 1, "longest_edge": float("inf")}}, {}, "size=inf"),
    "size": ({"size": 10}, {}, "size=10"),
    "sampling": ({"do_sample_frames": "yes"}, {}, "do_sample_frames='yes'"),
    "slow": ({"fps": 1e-9}, {}, ""),
    "slow and sampled": ({"fps": 1e-9, "do_sample_frames": True}, {"do_sample_frames": True}, ""),
    "fast and sampled": ({"fps": 1e300, "do_sample_frames": True}, {"do_sample_frames": True}, ""),
    "frames": ({"num_frames": 10**9}, {}, "num_frames=1000000000: give a positive number up to 1000000"),
    "more frames": ({"num_frames": 10**6, "do_sample_frames": True}, {"do_sample_frames": True}, ""),
    "slow source": ({}, {"fps": 1e-9}, ""),
    "source at nan": ({}, {"fps": float("nan")}, ""),
    "source that goes back": ({}, {"fps": -1.0}, ""),
    "endless source": ({}, {"total_num_frames": 10**15, "fps": 1.0}, ""),
    "places": ({}, {"frames_indices": [10**12] * 8}, ""),
    "places before it": ({}, {"frames_indices": [-5] * 8}, ""),
}


@pytest.mark.parametrize("rate", [0.0, RATE])
def test_a_hostile_request_fails_alone(checkpoint, environment, tmp_path, rate) -> None:
    (prompt,) = prepare(checkpoint, {"video": Case((BEFORE, Video("landscape", grids=4), AFTER))})
    (video,) = prompt.request["videos"]
    cases = {"before": prompt.request}
    for name, (processor, metadata, _) in HOSTILE.items():
        said = {**video, "metadata": video["metadata"] | metadata}
        cases[name] = {**prompt.request, "videos": [said], "processor": processor}
    cases["after"] = prompt.request
    asked = job(checkpoint, [prompt], [[name] for name in cases], rate=rate)
    asked["cases"] = cases
    served = drive(environment("0.32.0"), tmp_path / "job", asked, prompt.media)
    answers = {name: answer for name, (answer,) in zip(cases, served["rounds"], strict=True)}
    assert answers["after"] == answers["before"] and "tokens" in answers["after"]
    said = {name: answers[name].get("error", answers[name].get("limit", "answered")) for name in HOSTILE}
    assert {name: said[name] for name, (_, _, words) in HOSTILE.items() if words not in said[name]} == {}


@pytest.fixture(scope="module")
def odd(checkpoint, environment, tmp_path_factory) -> dict[str, Any]:
    """One server's answers to odd requests, one after another, by name."""
    (prompt,) = prepare(checkpoint, {"video": Case((BEFORE, Video("landscape"), AFTER))})
    random, (_, height, width, _) = np.random.default_rng(0), next(iter(prompt.media.values())).shape
    frames = random.integers(0, 256, (40, height, width, 3), dtype=np.uint8)
    whole = {"fps": 20.0, "duration": 2.0, "total_num_frames": 40, "frames_indices": list(range(40))}
    chosen = {"frames_indices": list(range(0, 40, 5)), "do_sample_frames": False}
    sampled = {"videos": [{"key": "sampled", "metadata": whole | chosen}]}
    resampled = {"videos": [{"key": "whole", "metadata": whole | {"do_sample_frames": True}}]}
    long = whole | {"total_num_frames": 960, "frames_indices": list(range(960)), "do_sample_frames": False}
    cases = {
        "before": sampled,
        "resampled": resampled | {"processor": {"fps": 4.0, "do_sample_frames": True}},
        "embeds": {"videos": [], "embeds": {"key": "rows", "grids": [[2, 4, 4]]}},
        "too long": {"videos": [{"key": "long", "metadata": long}]},
        "after": sampled,
    }
    vision = AutoConfig.from_pretrained(checkpoint).vision_config
    channels = vision.out_hidden_size * (1 + len(getattr(vision, "deepstack_visual_indexes", [])))
    rows = random.normal(size=(8, channels)).astype(np.float32)
    media = {"whole": frames, "sampled": frames[::5], "long": np.repeat(frames, 24, axis=0), "rows": rows}
    asked = job(checkpoint, [prompt], [[name] for name in cases], engine={"enable_mm_embeds": True})
    asked["cases"] = {name: {**prompt.request, "images": [], **case} for name, case in cases.items()}
    folder: Path = tmp_path_factory.mktemp("odd")
    served = drive(environment("0.32.0"), folder / "job", asked, media)
    return {name: answer for name, (answer,) in zip(cases, served["rounds"], strict=True)}


def test_frames_that_the_processor_samples_stand_where_frames_sampled_before_do(odd, checkpoint) -> None:
    if AutoConfig.from_pretrained(checkpoint).model_type == "qwen3_vl":
        pytest.skip("its processor spreads frames over the clip by a rule of its own")
    for what in ("prompt_ids", "positions", "tokens", "kept"):
        assert odd["resampled"][what] == odd["before"][what]


def test_video_embeds_without_their_times_fail_alone(odd) -> None:
    assert odd["embeds"]["error"].startswith("ValueError: ")
    assert "second_per_grid_ts" in odd["embeds"]["error"] or "timestamps" in odd["embeds"]["error"]
    assert "\n" not in odd["embeds"]["error"]
    assert odd["after"] == odd["before"]


def test_a_video_over_the_server_s_limits_is_refused_as_such(odd) -> None:
    assert "limit" in odd["too long"]
