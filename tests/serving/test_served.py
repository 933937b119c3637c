"""A real vLLM against our own generation, on tiny checkpoints, on the CPU. Minutes, not seconds."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoProcessor

from evs.families.servers import VLLM_VERSIONS
from evs.positions import frame_boxes, rope_positions, timed_box
from evs.selection import keep_count
from evs.types import Grid
from scripts.check_serving import Options, check, prepare, serve
from scripts.make_tiny_model import make
from scripts.serving.cases import AFTER, BEFORE, CASES, Case, Video
from tests.serving.conftest import SERVABLE

pytestmark = pytest.mark.serving

RATES = {"0.32.0": [0.0, 0.3, 0.5, 0.75, 0.9], "0.31.0": [0.0, 0.5, 0.9], "0.33.0": [0.0, 0.5, 0.9]}
NOISE = 0.03  # of log-probabilities in bfloat16, where two implementations of the same layers round differently


@pytest.mark.parametrize("version", VLLM_VERSIONS)
def test_with_the_plugin_a_server_answers_as_the_trained_model(checkpoint, environment, version) -> None:
    verdicts = check(Options(checkpoint, environment(version), RATES[version], chunks=[0, 64]))
    assert len(verdicts) == len(CASES) * len(RATES[version]) * 2
    assert {key: verdict.text for key, verdict in verdicts.items() if not verdict.agrees} == {}


def test_a_mixture_of_experts_is_served_alike(environment, tmp_path) -> None:
    model, cases = str(make("qwen3_vl_moe", tmp_path)), ["square", "two videos", "video then image"]
    verdicts = check(Options(model, environment("0.32.0"), [0.0, 0.75], cases, chunks=[0, 64]))
    assert len(verdicts) == len(cases) * 2 * 2
    assert {key: verdict.text for key, verdict in verdicts.items() if not verdict.agrees} == {}


def test_gated_delta_net_is_served_within_the_noise_of_rate_zero(environment, tmp_path) -> None:
    model = str(make("qwen3_5", tmp_path))
    options = Options(model, environment("0.32.0"), [0.0, 0.5, 0.75, 0.9], chunks=[0, 64])
    verdicts = check(replace(options, dtype="bfloat16", tolerance=NOISE))
    assert len(verdicts) == len(CASES) * 4 * 2
    assert {key: verdict.text for key, verdict in verdicts.items() if not verdict.agrees} == {}


def test_counts_and_positions_of_a_hybrid_mixture_of_experts_are_exact(environment, tmp_path) -> None:
    model, cases = str(make("qwen3_5_moe", tmp_path)), ["no text after", "64 grids", "video then image"]
    options = Options(model, environment("0.32.0"), [0.0, 0.75, 0.9], cases, chunks=[0, 64])
    texts = [verdict.text for verdict in check(replace(options, dtype="bfloat16")).values()]
    assert len(texts) == len(cases) * 3 * 2
    assert not [
        text for text in texts if "moved" in text or "tokens, not" in text or "others" in text or text == "raises"
    ]


def test_nemotron_is_served_within_the_noise_of_rate_zero(environment, tmp_path) -> None:
    model = str(make("nemotron_h_omni", tmp_path, **SERVABLE))
    options = Options(model, environment("0.32.0"), [0.0, 0.5, 0.9], chunks=[0, 64])
    verdicts = check(replace(options, dtype="bfloat16", tolerance=NOISE))
    assert len(verdicts) == len(CASES) * 3 * 2
    assert {key: verdict.text for key, verdict in verdicts.items() if not verdict.agrees} == {}


@pytest.mark.parametrize(
    ("family", "version", "asked", "words"),
    [
        ("qwen3_5", "0.32.0", {"dtype": "float32"}, "--dtype float32: on a CPU vLLM .* use --dtype bfloat16$"),
        ("qwen3_5", "0.32.0", {"method": "vidcom2"}, "--video-pruning-method vidcom2: the checkpoint was trained for"),
        (
            "nemotron_h_omni",
            "0.31.0",
            {},
            "transformers .* of vLLM 0.31.0 has no nemotron_h_omni: give vllm_python=",
        ),
    ],
)
def test_what_the_server_refuses_is_one_line_with_the_remedy(environment, tmp_path, family, version, asked, words):
    options = Options(str(make(family, tmp_path)), environment(version), [0.5], ["square"])
    with pytest.raises(ValueError, match=f"^vLLM ended with status 1: {words}") as error:
        check(replace(options, **{"dtype": "bfloat16", **asked}))
    assert "\n" not in str(error.value)


def test_a_stock_server_raises_on_every_pruned_video_of_qwen3_5(environment, tmp_path) -> None:
    model, cases = str(make("qwen3_5", tmp_path)), ["square", "two videos"]
    options = Options(model, environment("0.32.0"), [0.0, 0.5], cases, servers=["stock"])
    verdicts = check(replace(options, dtype="bfloat16", tolerance=NOISE))
    assert all(verdict.agrees for (_, _, rate, _), verdict in verdicts.items() if rate == 0)
    assert all("video_pruning_method" in verdict.error for (_, _, rate, _), verdict in verdicts.items() if rate)


def test_a_stock_server_does_so_only_without_pruning(checkpoint, environment) -> None:
    verdicts = check(Options(checkpoint, environment("0.32.0"), [0.0, 0.5], servers=["stock"]))
    assert {(rate, verdict.agrees) for (_, _, rate, _), verdict in verdicts.items()} == {(0.0, True), (0.5, False)}


def test_the_scheme_vllm_is_what_a_stock_server_does(checkpoint, environment) -> None:
    if AutoConfig.from_pretrained(checkpoint).model_type != "qwen2_5_vl":
        pytest.skip("the scheme is Qwen2.5-VL's")
    alone = [name for name, case in CASES.items() if len(case.videos) == 1 and not case.pictures]
    options = Options(checkpoint, environment("0.32.0"), [0.0, 0.5], alone, servers=["stock"], scheme="vllm")
    assert {key: verdict.text for key, verdict in check(options).items() if not verdict.agrees} == {}


def test_bf16_positions_of_a_long_video_are_exact(checkpoint, environment, tmp_path) -> None:
    grid, rate = Grid(64, 14, 24), 0.9
    model = str(shutil.copytree(checkpoint, tmp_path / "large"))
    processor = AutoProcessor.from_pretrained(model)
    processor.video_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 10**9}
    processor.save_pretrained(model)
    video = Video("wide", grids=grid.T, fps=1.9)  # a rate whose seconds per grid bf16 cannot hold
    (prompt,) = prepare(model, {"long": Case((BEFORE, video, AFTER))})
    options = Options(model, environment("0.32.0"), [rate], dtype="bfloat16")
    served = torch.tensor(serve([prompt], options, "plugin")["plugin", "long", rate, 0]["positions"])

    config = AutoConfig.from_pretrained(model)
    visual = prompt.batch.input_ids_N == config.video_token_id
    assert int(visual.sum()) == grid.tokens
    if config.model_type == "qwen2_5_vl":
        seconds = prompt.batch.second_per_grid_V.item()
        boxes = [timed_box(grid, tokens_per_second=2, second_per_grid=seconds)]
    else:
        boxes = frame_boxes(grid)
    unpruned, following = rope_positions(visual, boxes)
    index = {tuple(position): i for i, position in enumerate(unpruned.T.tolist())}
    length = int((~visual).sum()) + keep_count(grid, rate)
    found = torch.tensor([index[tuple(position)] for position in served[:, :length].T.tolist()])
    assert (found.diff() > 0).all()  # each survivor at a place of its own, in order
    assert int(visual[found].sum()) == keep_count(grid, rate)
    answered = served[:, length:]
    assert torch.equal(answered, torch.arange(following, following + answered.shape[1]).expand(3, -1))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "nemotron_h_omni"])
def test_neither_the_order_of_cases_nor_their_company_matters(environment, tmp_path, family) -> None:
    names, sizes = ["landscape", "two videos", "video then image"], SERVABLE if family == "nemotron_h_omni" else {}
    model = str(make(family, tmp_path, **sizes))
    asked = Options(model, environment("0.32.0"), [0.0, 0.75], names, dtype="bfloat16", tolerance=NOISE)
    ordered = check(asked)
    assert {key: verdict.text for key, verdict in ordered.items() if not verdict.agrees} == {}
    assert check(replace(asked, cases=names[::-1])) == ordered
    for name in names:
        alone = {key: verdict for key, verdict in ordered.items() if key[1] == name}
        assert check(replace(asked, cases=[name])) == alone


def test_a_family_that_this_vllm_lacks_is_one_line_with_the_remedy(environment, tmp_path) -> None:
    config = make("qwen3_5", tmp_path) / "config.json"
    config.write_text(config.read_text().replace("Qwen3_5ForConditionalGeneration", "Qwen9ForConditionalGeneration"))
    with pytest.raises(ValueError, match=r"vLLM 0.32.0 has no Qwen9ForConditionalGeneration: give vllm_python= of"):
        check(Options(str(tmp_path), environment("0.32.0"), [0.5], ["square"]))
