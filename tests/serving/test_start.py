"""What a server with the plugin refuses or warns of at its start: a real vLLM's configurations, without an engine."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from evs.families import FAMILIES, spec_of
from evs.families.servers import VLLM_VERSIONS
from evs.policy import Policy
from scripts.make_tiny_model import make
from tests.serving.conftest import SERVABLE, drive
from train.export.serving_metadata import media_io

pytestmark = pytest.mark.serving

TRAINED = Policy(scorer_dtype="float32", max_frames=128)
FRAMES = {"max_frames": 128, "num_frames": -1}
FLAGS = {"media_io_kwargs": {"video": FRAMES}}  # what such a server must be given
RATES = {"name": "Mixture", "components": [{"rate": 0.0}, {"low": 0.0, "high": 0.4}]}


@pytest.fixture(scope="module", params=VLLM_VERSIONS)
def said(request, environment, tmp_path_factory):
    """What one server says to every configuration of CONFIGURATIONS, all asked in one process."""
    folder = tmp_path_factory.mktemp("start")
    python = environment(request.param)
    checkpoint = make("qwen3_vl", folder / "checkpoint")  # vidcom2 is Qwen3-VL's only
    asked = {name: _arguments(name, checkpoint, folder) for name in CONFIGURATIONS}
    got = drive(python, folder / "job", {"configurations": list(asked.values())})
    return dict(zip(asked, got, strict=True))


# name: (what was trained, if an evs.json says so; arguments of the server)
CONFIGURATIONS = {
    "as trained": (TRAINED, FLAGS),
    "an older export": (None, {}),
    "no pruning": (None, {"video_pruning_rate": None, "pipeline_parallel_size": 2}),
    "pipeline": (None, {"pipeline_parallel_size": 2}),
    "vidcom2": (None, {"video_pruning_method": "vidcom2"}),
    "vidcom2, trained for it": (replace(TRAINED, method="vidcom2"), FLAGS | {"video_pruning_method": "vidcom2"}),
    "defaults": (TRAINED, {}),
    "another rate of frames": (TRAINED, {"media_io_kwargs": {"video": FRAMES | {"fps": 1}}}),
    "another loader": (TRAINED, {"media_io_kwargs": {"video": FRAMES | {"video_backend": "opencv"}}}),
    "sampled again": (TRAINED, FLAGS | {"mm_processor_kwargs": {"do_sample_frames": True, "fps": 1}}),
    "other sizes": (TRAINED, FLAGS | {"mm_processor_kwargs": {"size": {"longest_edge": 50176, "shortest_edge": 784}}}),
    "another decoder": (TRAINED, {"media_io_kwargs": {"video": FRAMES | {"backend": "torchcodec"}}}),
    "recovered frames": (TRAINED, {"media_io_kwargs": {"video": FRAMES | {"frame_recovery": True}}}),
    "an option of tomorrow": (TRAINED, {"media_io_kwargs": {"video": FRAMES | {"jitter": 3}}}),
    "the loader's defaults": (TRAINED, {"media_io_kwargs": {"video": FRAMES | {"backend": "opencv"}}}),
    "frame lists cut": (TRAINED, {"media_io_kwargs": {"video": {"max_frames": 128}}}),
    "a higher rate": (replace(TRAINED, rates=RATES), FLAGS),
    "a trained rate": (replace(TRAINED, rates={"name": "Constant", "rate": 0.5}), FLAGS),
    "a method of no server": (replace(TRAINED, method="random_tokens"), FLAGS),
    "temporal patches": (TRAINED, FLAGS | {"mm_processor_kwargs": {"temporal_patch_size": 4}}),
    "no resizing": (TRAINED, FLAGS | {"mm_processor_kwargs": {"videos_kwargs": {"do_resize": False}}}),
    "resampling": (TRAINED, FLAGS | {"mm_processor_kwargs": {"resample": 0}}),
    "other images": (TRAINED, FLAGS | {"mm_processor_kwargs": {"images_kwargs": {"do_resize": False}}}),
    "the processor's own": (TRAINED, FLAGS | {"mm_processor_kwargs": {"resample": 3, "temporal_patch_size": 2}}),
    "clock": (TRAINED, FLAGS | {"hf_overrides": {"vision_config": {"tokens_per_second": 5}}}),
    "another dtype": (TRAINED, FLAGS | {"dtype": "bfloat16"}),
    "another scheme": (replace(TRAINED, scheme="vllm"), FLAGS),
}
QUIET = [
    "as trained",
    "an older export",
    "no pruning",
    "vidcom2, trained for it",
    "the loader's defaults",
    "a trained rate",
    "the processor's own",
]


def _arguments(name: str, checkpoint: Path, folder: Path) -> dict[str, object]:
    policy, arguments = CONFIGURATIONS[name]
    model = checkpoint
    if policy:
        model = folder / name.replace(" ", "-").replace(",", "").replace("'", "")
        shutil.copytree(checkpoint, model)
        policy.write(model)
    return {"model": str(model), "dtype": "float32", "video_pruning_rate": 0.5, "enforce_eager": True, **arguments}


@pytest.mark.parametrize("name", QUIET)
def test_a_server_as_in_training_starts_in_silence(said, name) -> None:
    assert said[name] == {"error": "", "warnings": []}


def test_stages_of_a_pipeline_are_refused(said) -> None:
    assert "--pipeline-parallel-size 2: with --video-pruning-rate only the first stage" in said["pipeline"]["error"]


def test_a_mask_that_training_never_saw_is_refused(said) -> None:
    assert "--video-pruning-method vidcom2: the checkpoint was trained for evs" in said["vidcom2"]["error"]


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "defaults",
            'max_frames 768, trained 128: --media-io-kwargs \'{"video": {"max_frames": 128, "num_frames": -1}}\'',
        ),
        ("another rate of frames", "fps 1, trained 2.0: --media-io-kwargs"),
        ("another loader", "video_backend opencv, trained the family's own"),
        ("sampled again", "do_sample_frames True, trained False"),
        ("other sizes", "size.longest_edge 50176, trained"),
        ("another decoder", "backend torchcodec, trained opencv: leave it out of --media-io-kwargs"),
        ("recovered frames", "frame_recovery True, trained False: leave it out"),
        ("an option of tomorrow", "jitter 3, trained unset"),
        ("frame lists cut", "num_frames 32, trained -1: --media-io-kwargs"),
        ("a higher rate", "pruning rate 0.5, trained up to 0.4: --video-pruning-rate 0.4 or less"),
        ("a method of no server", "method evs, trained random_tokens: leave --video-pruning-rate out"),
        ("temporal patches", "temporal_patch_size 4, trained 2"),
        ("no resizing", "do_resize False, trained True"),
        ("resampling", "resample 0, trained 3"),
        ("other images", "do_resize False, trained True"),
        ("clock", "vision_config.tokens_per_second 5, trained unset: leave it out of --hf-overrides"),
        ("another dtype", "dtype of scores bfloat16, trained float32: --dtype float32"),
        ("another scheme", "scheme preserve, trained vllm: EVS_VLLM_PLUGIN=0"),
    ],
)
def test_what_differs_from_training_is_one_warning_with_the_flag_to_give(said, name, words) -> None:
    assert said[name]["error"] == ""
    (warning,) = said[name]["warnings"]
    assert words in warning
    assert "\n" not in warning


@pytest.mark.parametrize("version", VLLM_VERSIONS)
def test_gated_delta_net_in_float32_on_a_cpu_is_refused(environment, tmp_path, version) -> None:
    model = str(make("qwen3_5", tmp_path / "checkpoint"))
    asked = [{"model": model, "dtype": dtype, "enforce_eager": True} for dtype in ("float32", "bfloat16")]
    refused, started = drive(environment(version), tmp_path / "job", {"configurations": asked})
    assert (
        "--dtype float32: on a CPU vLLM runs gated DeltaNet layers in bfloat16 alone; use --dtype bfloat16"
        in (refused["error"])
    )
    assert started["error"] == ""


def test_a_checkpoint_named_qwen3_8_is_trained_and_served_by_its_architecture(environment, tmp_path) -> None:
    model = make("qwen3_5", tmp_path / "Qwen3.8-27B")  # whose config.json names Qwen3.5's type and architecture
    assert spec_of(AutoConfig.from_pretrained(model)) is FAMILIES["qwen3_5"]
    asked = {"model": str(model), "dtype": "bfloat16", "enforce_eager": True, "video_pruning_rate": 0.5}
    said = drive(environment("0.32.0"), tmp_path / "job", {"configurations": [asked, asked | {"dtype": "float32"}]})
    assert said[0] == {"error": "", "warnings": []}
    assert "gated DeltaNet" in said[1]["error"]  # the plugin's check of that architecture


# name: (sizes that differ from the servable ones, arguments of the server, what it says)
NEMOTRON = {
    "as trained": ({}, {"media_io_kwargs": {"video": {"fps": 2.0, "num_frames": 16}}}, ""),
    "defaults": ({}, {}, 'num_frames 32, trained 16: --media-io-kwargs \'{"video": {"fps": 2.0, "num_frames": 16}}\''),
    "float32": ({}, {"dtype": "float32"}, "--dtype float32: vLLM casts what Nemotron's tower gives to bfloat16; use"),
    "a tower of no name": (
        {"vision_depth": 2},
        {},
        "timm's four names: make a tiny checkpoint with sizes.vision_width",
    ),
    "experts": ({"experts": 4}, {}, "on a CPU vLLM has no experts without a gate"),
}


def test_a_server_of_glm_refuses_to_prune_which_its_vllm_would_not_do(environment, tmp_path) -> None:
    model = make("glm4v", tmp_path / "model")
    Policy(max_frames=64).write(model)
    loader = {"media_io_kwargs": media_io(Policy(max_frames=64), "Glm4vForConditionalGeneration")}
    asked = [{"model": str(model), "dtype": "float32", **more} for more in ({"video_pruning_rate": 0.5}, loader, {})]
    pruning, trained, defaults = drive(environment("0.32.0"), tmp_path / "job", {"configurations": asked})
    assert "--video-pruning-rate 0.5: vLLM prunes no video of Glm4vForConditionalGeneration; leave" in pruning["error"]
    assert trained == {"error": "", "warnings": []}
    assert "max_duration 300, trained 32.0: --media-io-kwargs" in defaults["warnings"][0]


def test_what_a_server_of_nemotron_cannot_do_is_refused_and_the_rest_is_told(environment, tmp_path) -> None:
    asked = []
    for sizes, arguments, _ in NEMOTRON.values():
        model = make("nemotron_h_omni", tmp_path / str(len(asked)), **{**SERVABLE, **sizes})
        Policy(scorer_dtype="bfloat16", max_frames=16).write(model)
        asked.append({"model": str(model), "dtype": "bfloat16", "video_pruning_rate": 0.5, **arguments})
    said = drive(environment("0.32.0"), tmp_path / "job", {"configurations": asked})
    for (_, _, words), got in zip(NEMOTRON.values(), said, strict=True):
        heard = got["error"] + "".join(got["warnings"])
        assert words in heard and bool(heard) == bool(words)
