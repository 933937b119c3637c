"""A stock transformers model with pruning enabled: its losses, logits and gradients are those of our training task."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, DynamicCache, GenerationConfig, TrainingArguments

from evs import FrameDelta, Uniform, draw
from evs.families import adapter_for, towers_of
from evs.generate import generate
from evs.methods import method_named
from evs.transformers import PruningCallback, disable_pruning, enable_pruning, pruning
from tests.evs.models import BUILDERS, DENSE, GLM, IMAGE, VIDEO, Prompts, prompts, stock_inputs, tiny_model, unclamped
from train.task import TrainRequest, UptrainTask

NORMAL = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
METHODS = [("evs", "merger"), ("vidcom2", "merger"), ("even_frames", "merger"), ("pixel_delta", "merger")]
METHODS += [("pixel_delta", "input"), ("pixel_delta", 1)]
CASES = [(family, "evs", "merger") for family in BUILDERS] + [
    *(("qwen2_5_vl", *method) for method in METHODS[1:]),
    *(("qwen3_vl", *method) for method in METHODS[1:]),
    ("qwen3_5", "pixel_delta", "input"),
    ("glm4v", "pixel_delta", 1),
    ("nemotron_h_omni", "even_frames", "merger"),
]


@pytest.fixture(params=DENSE)
def family(request) -> str:
    return request.param


def layout(family: str) -> list[list[Any]]:
    """Three samples, of which one has no media. Nemotron's processor takes videos of one size."""
    one = ("video", (4, 2, 3))
    if family == "nemotron_h_omni":
        return [[3, one, 5], [6], [2, one, 1, one, 4]]
    return [[3, one, 5], [6], [("image", (1, 2, 2)), 2, ("video", (3, 3, 2)), 1, ("video", (2, 2, 2)), 4]]


def batch_of(family: str, samples: list[list[Any]]) -> Prompts:
    """Packed prompts whose pixels are normalised levels."""
    batch = prompts(family, samples)
    random = torch.Generator().manual_seed(1)
    pixels = {
        name: None if rows is None else torch.randint(0, 256, rows.shape, generator=random) / 127.5 - 1
        for name in ("pixel_values_videos", "pixel_values")
        for rows in (getattr(batch, name),)
    }
    return replace(batch, **pixels, video_normal=NORMAL, image_normal=NORMAL)


def padded(family: str, batch: Prompts, side: str = "right") -> dict[str, torch.Tensor]:
    """The same prompts as the family's processor and a collator return them."""
    lengths = batch.segment_N.bincount().tolist()

    def rows(values_N: torch.Tensor, fill: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            list(values_N.split(lengths)), batch_first=True, padding_value=fill, padding_side=side
        )

    inputs = {
        "input_ids": rows(batch.input_ids_N, 2),
        "attention_mask": rows(torch.ones_like(batch.input_ids_N), 0),
        "labels": rows(batch.labels_N, -100),
    }
    if family == "nemotron_h_omni":
        (shape,) = {tuple(thw) for thw in batch.video_grid_thw_V3.tolist()} or {None}
        if shape:
            t, h, w = shape
            patches = batch.pixel_values_videos.view(-1, t, h, w, 6, 4, 4).permute(0, 1, 4, 2, 5, 3, 6)
            inputs["pixel_values_videos"] = patches.reshape(-1, t, 6, 4 * h, 4 * w)
        return inputs
    inputs |= {"mm_token_type_ids": rows(types(family, batch), 0)}
    if family == "qwen2_5_vl" and len(batch.video_grid_thw_V3):
        inputs["second_per_grid_ts"] = batch.second_per_grid_V
    media = {
        "pixel_values_videos": batch.pixel_values_videos,
        "video_grid_thw": batch.video_grid_thw_V3,
        "pixel_values": batch.pixel_values,
        "image_grid_thw": batch.image_grid_thw_I3,
    }
    return inputs | {name: value for name, value in media.items() if value is not None and len(value)}


def types(family: str, batch: Prompts) -> torch.Tensor:
    """[N] 1 on placeholders of images, 2 on those of videos."""
    images_N, videos_N = batch.input_ids_N == IMAGE, batch.input_ids_N == VIDEO
    if family in GLM:
        x = adapter_for(tiny_model(family)).embed_prompt(batch)
        images_N, videos_N = x.visual_N & (x.video_N < 0), x.video_N >= 0
    return images_N.long() + 2 * videos_N.long()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def enabled(family: str, rate: float, method: str = "evs", prune_at: str | int = "merger", **options: Any) -> Any:
    model = tiny_model(family)
    enable_pruning(model, rate, method=method, prune_at=prune_at, scorer_dtype=None, **options)
    return model


@pytest.mark.parametrize(("family", "method", "prune_at"), CASES)
def test_loss_and_gradients_are_the_training_task_s(family, method, prune_at) -> None:
    batch, model = batch_of(family, layout(family)), tiny_model(family)
    task = UptrainTask(model, adapter_for(model), method_named(method, None, prune_at)).train()
    expected = task(batch, TrainRequest((0.6,)))
    (expected.loss_sum / expected.targets).backward()
    reference = gradients(model)
    model = enabled(family, 0.6, method, prune_at)
    for side, options in (("right", {}), ("left", {"num_items_in_batch": 2 * expected.targets})):
        model.zero_grad()
        out = model.train()(**padded(family, batch, side), **options)
        share = 1 + bool(options)
        torch.testing.assert_close(out.loss * share, expected.loss_sum / expected.targets, atol=1e-5, rtol=1e-5)
        (out.loss * share).backward()
        assert gradients(model).keys() == reference.keys()
        for name, value in gradients(model).items():
            torch.testing.assert_close(value, reference[name], atol=1e-5, rtol=1e-3, msg=name)
        assert model.pruning_state.tokens_after == expected.kept[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_stock_shifted_loss_and_accuracy_of_the_logits_are_the_pruned_ones(family, side) -> None:
    batch, model = batch_of(family, layout(family)), tiny_model(family)
    task = UptrainTask(model, adapter_for(model), FrameDelta()).eval()(batch, TrainRequest((0.6,)))
    inputs = padded(family, batch, side)
    with torch.no_grad():
        out = enabled(family, 0.6)(**inputs)
    assert out.logits.shape == (*inputs["input_ids"].shape, 32)
    logits, labels = out.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
    torch.testing.assert_close(cross_entropy(logits, labels), task.loss_sum / task.targets)
    torch.testing.assert_close(out.loss, task.loss_sum / task.targets)
    assert (logits.argmax(-1) == labels).sum() == task.correct_K[0]


def test_logits_of_dropped_tokens_are_zero_unless_a_survivor_follows() -> None:
    batch = batch_of("qwen2_5_vl", [[3, ("video", (4, 2, 3)), 5]])
    with torch.no_grad():
        out = enabled("qwen2_5_vl", 0.75)(**padded("qwen2_5_vl", batch))
    filled = out.logits[0].any(-1).tolist()  # 3 words, a mark, four grids of 6 tokens of which 6 stay, a mark, 5 words
    assert filled == [True] * 10 + [False] * 17 + [True] * 7
    torch.testing.assert_close(out.logits[0, 27], out.logits[0, 9], atol=0, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_padding_are_zero_next_to_other_rows(side) -> None:
    inputs = padded("qwen2_5_vl", batch_of("qwen2_5_vl", layout("qwen2_5_vl")), side)
    with torch.no_grad():
        out = enabled("qwen2_5_vl", 0.6)(**inputs)
    assert not out.logits[inputs["attention_mask"] == 0].any()


@pytest.mark.parametrize("keep", [1, 4, torch.tensor([0, 5])])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "nemotron_h_omni"])
def test_only_the_logits_that_are_asked_for_are_returned(family, keep) -> None:
    inputs = padded(family, batch_of(family, layout(family)), "left")
    del inputs["labels"]
    with torch.no_grad():
        every, some = (enabled(family, 0.6)(**inputs, **options).logits for options in ({}, {"logits_to_keep": keep}))
    torch.testing.assert_close(some, every[:, keep if isinstance(keep, torch.Tensor) else slice(-keep, None)])


SHORT = [[3, ("video", (2, 3, 3)), 5], [2, ("image", (1, 2, 2)), 1, ("video", (2, 4, 4)), 4], [7]]


@pytest.mark.parametrize("sample", range(len(SHORT)))
def test_at_rate_zero_a_model_is_the_stock_one(family, sample) -> None:
    """On layouts whose positions are right in the library, and without Mamba's limit of training."""
    batch = prompts(family, [SHORT[sample]])
    if (stock := stock_inputs(family, batch)) is None:
        pytest.skip("the library takes no prompt with both videos and images")
    inputs = vars(stock) | {"labels": batch.labels_N[None]}
    if family != "nemotron_h_omni":
        inputs["mm_token_type_ids"] = types(family, batch)[None]
    if family == "qwen2_5_vl" and len(batch.video_grid_thw_V3):
        inputs["second_per_grid_ts"] = batch.second_per_grid_V
    model = unclamped(tiny_model(family))
    with torch.no_grad():
        expected = model(**inputs)
        with pruning(model, rate=0.0):
            out = model(**inputs)
    assert type(out) is type(expected)
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.loss, expected.loss, atol=1e-4, rtol=1e-4)


def test_images_alone_are_placed_as_a_server_places_them_while_it_prunes() -> None:
    batch = batch_of("qwen2_5_vl", [[3, ("image", (1, 4, 2)), 5]])
    model = tiny_model("qwen2_5_vl")
    task = UptrainTask(model, adapter_for(model, "vllm"), FrameDelta()).train()
    pruned, whole = (task(batch, TrainRequest((rate,))) for rate in (0.5, 0.0))
    out = enabled("qwen2_5_vl", 0.5, scheme="vllm").train()(**padded("qwen2_5_vl", batch))
    torch.testing.assert_close(out.loss, pruned.loss_sum / pruned.targets)
    assert not torch.isclose(pruned.loss_sum, whole.loss_sum)


def test_disabling_restores_the_stock_model_bit_for_bit(family) -> None:
    inputs = padded(family, batch_of(family, [[3, ("video", (4, 2, 3)), 5]]))
    model = tiny_model(family)
    attributes = [dict(vars(module)) for module in model.modules()]
    with torch.no_grad():
        expected = model(**inputs)
        with pruning(model, rate=0.75):
            assert not torch.equal(model(**inputs).loss, expected.loss)
        out = model(**inputs)
    assert torch.equal(out.loss, expected.loss) and torch.equal(out.logits, expected.logits)
    for module, before in zip(model.modules(), attributes):
        assert vars(module).keys() == before.keys()
    disable_pruning(model)  # has nothing left to do


def test_a_with_statement_ends_with_the_setting_from_before() -> None:
    model, inputs = tiny_model("qwen3_vl"), padded("qwen3_vl", batch_of("qwen3_vl", layout("qwen3_vl")))

    def rates() -> set[float]:
        model(**inputs)
        return {*model.pruning_state.rates}

    enable_pruning(model, 0.25)
    with pruning(model, 0.5):
        assert rates() == {0.5}
        with pytest.raises(KeyError), pruning(model, 0.75, method="even_frames"):
            assert rates() == {0.75}
            raise KeyError
        assert rates() == {0.5}
    assert rates() == {0.25}
    enable_pruning(model, 0.9)
    assert rates() == {0.9}
    disable_pruning(model)
    assert not hasattr(model, "pruning_state")


def test_a_model_with_pruning_looks_and_saves_as_a_stock_one(family, tmp_path) -> None:
    stock, model = tiny_model(family), enabled(family, 0.75)
    assert type(model) is type(stock) and inspect.signature(model.forward) == inspect.signature(stock.forward)
    assert model.state_dict().keys() == stock.state_dict().keys()
    model(**padded(family, batch_of(family, [[3, ("video", (4, 2, 3)), 5]])))
    for name, each in (("stock", stock), ("pruned", model)):
        each.save_pretrained(tmp_path / name)
    files = {path.name for path in (tmp_path / "stock").iterdir()}
    assert files == {path.name for path in (tmp_path / "pruned").iterdir()}
    for file in files:
        assert (tmp_path / "stock" / file).read_bytes() == (tmp_path / "pruned" / file).read_bytes()


def test_a_copy_of_a_model_is_pruned_by_its_own_weights() -> None:
    inputs = padded("qwen2_5_vl", batch_of("qwen2_5_vl", layout("qwen2_5_vl")))
    model = enabled("qwen2_5_vl", 0.75)
    before = model(**inputs).loss
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(other(**inputs).loss, before) and not torch.equal(model(**inputs).loss, before)


@pytest.mark.parametrize("first", ["pruning", "peft"])
def test_lora_trains_as_in_the_training_task(first) -> None:
    batch, config = batch_of("qwen2_5_vl", layout("qwen2_5_vl")), LoraConfig(target_modules="all-linear")
    wrapped = get_peft_model(tiny_model("qwen2_5_vl"), config)
    task = UptrainTask(wrapped, adapter_for(wrapped.get_base_model()), FrameDelta()).train()
    expected = task(batch, TrainRequest((0.6,)))
    (expected.loss_sum / expected.targets).backward()
    model = tiny_model("qwen2_5_vl")
    if first == "pruning":
        enable_pruning(model, 0.6, scorer_dtype=None)
    model = get_peft_model(model, config)
    if first == "peft":
        enable_pruning(model, 0.6, scorer_dtype=None)
    model.load_state_dict(wrapped.state_dict())
    out = model.train()(**padded("qwen2_5_vl", batch))
    torch.testing.assert_close(out.loss, expected.loss_sum / expected.targets, atol=1e-5, rtol=1e-5)
    out.loss.backward()
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, dict(wrapped.named_parameters())[name].grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "places", [{"": "cpu"}, {"model.visual": "cpu", "model.language_model": "cpu", "lm_head": "cpu"}]
)
def test_hooks_of_a_device_map_stay_and_are_called(places) -> None:
    inputs = padded("qwen2_5_vl", batch_of("qwen2_5_vl", layout("qwen2_5_vl")))
    expected = enabled("qwen2_5_vl", 0.6)(**inputs).loss
    model = dispatch_model(tiny_model("qwen2_5_vl"), places, force_hooks=True)
    stock = model(**inputs).loss
    with pruning(model, 0.6, scorer_dtype=None):
        assert torch.equal(model(**inputs).loss, expected)
    assert torch.equal(model(**inputs).loss, stock)
    enable_pruning(model, 0.6, scorer_dtype=None)
    remove_hook_from_submodules(model)
    assert torch.equal(model(**inputs).loss, expected)
    disable_pruning(model)
    assert torch.equal(model(**inputs).loss, stock)


@pytest.mark.parametrize("items", [None, 7], ids=["mean", "items"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased head"])
def test_without_logits_the_loss_is_the_same(family, items, biased) -> None:
    inputs = padded(family, batch_of(family, layout(family))) | {"num_items_in_batch": items}
    whole, lean = enabled(family, 0.6).train(), enabled(family, 0.6, return_logits=False).train()
    for head in (towers_of(model).head for model in (whole, lean) if biased):
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    outs = [model(**inputs) for model in (whole, lean)]
    torch.testing.assert_close(outs[1].loss, outs[0].loss, atol=1e-5, rtol=1e-5)
    for out in outs:
        out.loss.backward()
    assert outs[1].logits is None
    for name, value in gradients(lean).items():
        torch.testing.assert_close(value, gradients(whole)[name], atol=1e-5, rtol=1e-3, msg=name)
    torch.testing.assert_close(lean.eval()(**inputs).loss, outs[0].loss, atol=1e-5, rtol=1e-5)
    del inputs["labels"], inputs["num_items_in_batch"]
    assert lean(**inputs).logits.shape[:2] == inputs["input_ids"].shape


@pytest.mark.parametrize("first", ["pruning", "trainer"])
def test_a_trainer_with_a_head_of_its_own_gets_pruned_hidden_states(family, first) -> None:
    if family == "nemotron_h_omni":
        return  # it has no model within
    inputs = padded(family, batch_of(family, [[3, ("video", (4, 2, 3)), 5], [6]]), "left")
    expected = enabled(family, 0.6)(**inputs)
    model = tiny_model(family)
    if first == "pruning":
        enable_pruning(model, 0.6, scorer_dtype=None)

    def fused(self: Any, labels: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.lm_head(self.base_model(**arguments).last_hidden_state)

    model.forward = MethodType(fused, model)
    if first == "trainer":
        enable_pruning(model, 0.6, scorer_dtype=None)
    torch.testing.assert_close(model(**inputs), expected.logits)
    PruningCallback().on_train_begin(TrainingArguments("unused", report_to="none"), None, None, model=model)
    disable_pruning(model)
    assert not torch.allclose(model(**inputs), expected.logits)


def test_samples_packed_into_a_row_do_not_see_each_other() -> None:
    batch = batch_of("qwen2_5_vl", layout("qwen2_5_vl"))
    inputs = padded("qwen2_5_vl", batch)
    apart = enabled("qwen2_5_vl", 0.6)(**inputs).loss
    names = ("input_ids", "labels", "mm_token_type_ids")
    real = inputs["attention_mask"].bool()
    row = {name: inputs[name][real][None] for name in names}
    starts = torch.cat([torch.arange(n) for n in batch.segment_N.bincount().tolist()])[None]
    media = {name: value for name, value in inputs.items() if name not in (*names, "attention_mask")}
    for packing in ({"position_ids": starts}, {"attention_mask": batch.segment_N[None] + 1}):
        torch.testing.assert_close(enabled("qwen2_5_vl", 0.6)(**row, **media, **packing).loss, apart)


def test_rates_follow_from_the_seed_the_step_the_micro_batch_and_the_rank() -> None:
    inputs = padded("qwen2_5_vl", batch_of("qwen2_5_vl", [[3, ("video", (4, 2, 3)), 5]]))
    model = tiny_model("qwen2_5_vl").train()

    def rate(seed: int, **place: int) -> float:
        enable_pruning(model, Uniform(0, 0.9), seed=seed)
        vars(model.pruning_state).update(counted=True, **place)
        model(**inputs)
        return model.pruning_state.rates[0]

    place = {"step": 3, "micro_batch": 1, "accumulation": 2, "rank": 1, "ranks": 2}
    step = draw(Uniform(0, 0.9), 4, seed=5, step=3)  # micro-batches of all ranks, as train/loop.py counts them
    assert rate(5, **place) == rate(5, **place) == step[3]
    assert rate(5, **place | {"rank": 0}) == step[2]
    assert len({rate(6, **place), rate(5, **place), rate(5, **place | {"step": 4})}) == 3
    enable_pruning(model, Uniform(0, 0.9), seed=5)
    drawn = []
    for _ in range(3):
        with torch.no_grad():
            model(**inputs)  # a model that only compares does not count as a step
        model(**inputs)
        drawn.append(model.pruning_state.rates[0])
    assert drawn == [draw(Uniform(0, 0.9), 1, seed=5, step=step)[0] for step in range(3)]
    assert model.eval()(**inputs) and model.pruning_state.rates == (0.0,)
    enable_pruning(model, Uniform(0, 0.9), eval_rate=0.75)
    assert model(**inputs) and model.pruning_state.rates == (0.75,)


def test_pixels_may_be_levels_and_are_recovered_if_they_are_normalised() -> None:
    batch = batch_of("qwen3_vl", layout("qwen3_vl"))
    inputs = padded("qwen3_vl", batch)
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3, rescale_factor=1 / 255)
    )
    model = enabled("qwen3_vl", 0.6, "pixel_delta", "input", processor=processor)
    expected = model(**inputs).loss
    names = ("pixel_values", "pixel_values_videos")
    levels = {name: ((inputs[name] + 1) * 127.5).round().byte() for name in names}
    torch.testing.assert_close(model(**inputs | levels).loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(enabled("qwen3_vl", 0.6, "pixel_delta", "input")(**inputs).loss, expected)
    with pytest.raises(ValueError, match=r"pixel_values_videos are torch.uint8.*the processor"):
        enabled("qwen3_vl", 0.6)(**inputs | levels)
    with pytest.raises(ValueError, match="not normalised uint8 levels"):
        model(**inputs | {"pixel_values_videos": inputs["pixel_values_videos"] * 1.1})
    with pytest.raises(ValueError, match="bfloat16, which merges levels"):
        model(**inputs | {"pixel_values_videos": inputs["pixel_values_videos"].bfloat16()})


class Wrapper(torch.nn.Module):
    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: Wrapper(tiny_model("qwen2_5_vl")), {}, "Wrapper is not a transformers model: call enable_pruning bef"),
        (
            lambda: BertForMaskedLM(BertConfig(vocab_size=8, hidden_size=12, num_hidden_layers=1)),
            {},
            "model family 'bert' is not supported: use one of",
        ),
        (lambda: tiny_model("qwen2_5_vl").model, {}, "Qwen2_5_VLModel has no language head: load"),
        (lambda: tiny_model("qwen2_5_vl"), {"rate": 1.0}, r"pruning rate 1.0 is outside \[0, 1\)"),
        (lambda: tiny_model("qwen2_5_vl"), {"rate": -0.1}, r"pruning rate -0.1 is outside \[0, 1\)"),
        (lambda: tiny_model("qwen2_5_vl"), {"rate": float("nan")}, r"pruning rate nan is outside \[0, 1\)"),
        (lambda: tiny_model("qwen2_5_vl"), {"rate": "high"}, "rate='high' is neither a number nor a distribution"),
        (lambda: tiny_model("qwen2_5_vl"), {"eval_rate": 1.5}, r"pruning rate 1.5 is outside \[0, 1\)"),
        (lambda: tiny_model("qwen2_5_vl"), {"method": "best"}, "pruning method 'best' is unknown: use one of"),
        (lambda: tiny_model("qwen2_5_vl"), {"prune_at": "input"}, "prune_at=input needs a score of pixels"),
        (lambda: tiny_model("qwen2_5_vl"), {"method": "pixel_delta", "prune_at": 9}, "has 3 blocks: use 0 to 3"),
        (lambda: tiny_model("qwen3_vl"), {"scheme": "vllm"}, "scheme 'vllm' is unknown for qwen3_vl"),
        (
            lambda: tiny_model("nemotron_h_omni"),
            {"method": "pixel_delta"},
            "nemotron_h_omni resizes frames in floating",
        ),
    ],
)
def test_what_cannot_be_enabled_is_refused_and_changes_nothing(make, options, message) -> None:
    model = make()
    attributes = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(ValueError, match=message) as error:
        enable_pruning(model, **{"rate": 0.5, **options})
    assert "\n" not in str(error.value)
    assert [vars(module).keys() for module in model.modules()] == [before.keys() for before in attributes]


LENGTH = 34  # of the row below


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(1, 5, dtype=torch.long)}, r"labels have shape \(1, 5\) and input_ids \(1, 34\)"),
        ({"input_ids": None}, "input_ids are missing"),
        ({"input_ids": torch.zeros(4, dtype=torch.long)}, r"input_ids have shape \(4,\): give rows"),
        ({"inputs_embeds": torch.zeros(1, LENGTH, 32)}, "inputs_embeds cannot be pruned"),
        ({"attention_mask": torch.zeros(1, LENGTH)}, "attention_mask masks all tokens"),
        ({"attention_mask": torch.ones(1, 1, LENGTH, LENGTH)}, r"attention_mask is \(1, 1, 34, 34\) and input_ids"),
        ({"past_key_values": DynamicCache()}, "neither reads nor returns past_key_values.*use model.generate"),
        ({"use_cache": True}, "neither reads nor returns past_key_values.*use model.generate"),
        ({"output_hidden_states": True}, "output_hidden_states=True: a pruned forward returns loss and logits only"),
        ({"logits_to_keep": 1}, "logits_to_keep leaves out logits that labels are compared with"),
        ({"video_grid_thw": None}, "pixel_values_videos is given without video_grid_thw"),
        ({"pixel_values_videos": None}, "video_grid_thw has 1 entries without pixel_values_videos"),
        ({"video_grid_thw": torch.tensor([[3, 4, 6]])}, "has 96 patches and video_grid_thw counts 72"),
        ({"video_grid_thw": torch.tensor([[5, 4, 6]])}, "has 96 patches and video_grid_thw counts 120"),
        ({"second_per_grid_ts": [1.0, 2.0]}, "second_per_grid_ts has 2 values for 1 videos"),
        ({"input_ids": torch.full((1, LENGTH), 3)}, "input_ids have 0 placeholders.*do not truncate prompts"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(changes, message) -> None:
    inputs = padded("qwen2_5_vl", batch_of("qwen2_5_vl", [[3, ("video", (4, 2, 3)), 5]]))
    with pytest.raises(ValueError, match=message) as error:
        enabled("qwen2_5_vl", 0.5)(**inputs | changes)
    assert "\n" not in str(error.value)


def test_a_video_that_continues_in_the_next_row_is_refused() -> None:
    inputs = padded("qwen2_5_vl", batch_of("qwen2_5_vl", [[3, ("video", (4, 2, 3)), 5]]))
    rows = {name: value.view(2, -1) for name, value in inputs.items() if value.shape == (1, LENGTH)}
    with pytest.raises(ValueError, match="do not truncate prompts with media"):
        enabled("qwen2_5_vl", 0.5)(**inputs | rows)


def test_a_label_of_the_first_token_is_ignored_since_nothing_predicts_it() -> None:
    inputs = padded("qwen2_5_vl", batch_of("qwen2_5_vl", layout("qwen2_5_vl")))
    expected = enabled("qwen2_5_vl", 0.6)(**inputs).loss
    labels = inputs["labels"].clone()
    labels[:, 0] = inputs["input_ids"][:, 0]
    torch.testing.assert_close(enabled("qwen2_5_vl", 0.6)(**inputs | {"labels": labels}).loss, expected)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_router_logits"])
def test_outputs_that_the_configuration_asks_for_are_refused_too(name) -> None:
    model = enabled("qwen2_5_vl", 0.5)
    vars(model.config.get_text_config())[name] = True
    with pytest.raises(ValueError, match=f"{name}=True: a pruned forward returns loss and logits only"):
        model(**padded("qwen2_5_vl", batch_of("qwen2_5_vl", [[3, ("video", (4, 2, 3)), 5]])))


def test_videos_and_images_on_one_placeholder_need_types_of_tokens() -> None:
    batch = batch_of("glm4v", [[3, ("video", (2, 2, 2)), 2, ("image", (1, 2, 2)), 5]])
    inputs = padded("glm4v", batch)
    ids = inputs["input_ids"].clone()
    ids[0, 2], ids[0, 17] = 15, 16  # words around the video become the marks of its beginning and its end
    marked = inputs | {"input_ids": ids}
    expected = enabled("glm4v", 0.5)(**marked).loss
    del marked["mm_token_type_ids"]
    torch.testing.assert_close(enabled("glm4v", 0.5)(**marked).loss, expected)


NEW = 5


@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_returns_the_full_prompts_and_the_tokens_of_evs_generate(family, side) -> None:
    batch, model = batch_of(family, layout(family)), tiny_model(family)
    expected = generate(model, adapter_for(model), batch, 0.6, max_new_tokens=NEW, eos_token_id=None)
    inputs = padded(family, batch, side)
    del inputs["labels"]
    model = enabled(family, 0.6)
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :length], inputs["input_ids"])
    assert out[:, length:].tolist() == [list(each.tokens) for each in expected]
    assert model.pruning_state.tokens_after < model.pruning_state.tokens_before
    longer = model.generate(**inputs, max_length=length + NEW, do_sample=False, eos_token_id=None)
    assert torch.equal(longer, out)


def test_generate_takes_what_the_library_s_takes() -> None:
    inputs = padded("qwen3_vl", batch_of("qwen3_vl", layout("qwen3_vl")), "left")
    del inputs["labels"]
    model, length = enabled("qwen3_vl", 0.6), inputs["input_ids"].shape[1]
    out = model.generate(
        **inputs, max_new_tokens=4, num_beams=3, num_return_sequences=2, return_dict_in_generate=True, do_sample=False
    )
    assert out.sequences.shape == (6, length + 4)
    assert torch.equal(out.sequences[:, :length], inputs["input_ids"].repeat_interleave(2, 0))
    config = GenerationConfig(max_length=length + 3, min_length=length + 3, do_sample=False, eos_token_id=1)
    assert model.generate(**inputs, generation_config=config).shape[1] == length + 3
    assert config.max_length == length + 3
    put: list[torch.Tensor] = []
    streamer = SimpleNamespace(put=put.append, end=lambda: put.append(None))
    one = {name: inputs[name][:1] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    one |= {"pixel_values_videos": inputs["pixel_values_videos"][:96], "video_grid_thw": inputs["video_grid_thw"][:1]}
    answer = model.generate(**one, max_new_tokens=3, do_sample=False, streamer=streamer, eos_token_id=None)
    assert torch.equal(put[0], one["input_ids"]) and put[-1] is None
    assert [int(token) for token in put[1:-1]] == answer[0, length:].tolist()
    with pytest.raises(ValueError, match="holds 2 tokens, and videos cannot be added to a pruned chat"):
        cache = DynamicCache()
        cache.update(*torch.zeros(2, 1, 1, 2, 16), 0)
        model.generate(**one, past_key_values=cache)
