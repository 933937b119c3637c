"""Pruning under transformers' own Trainer: rates, resume, the log and evs.json."""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import ParallelismConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoProcessor, Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback

from data.media.frames import FramePolicy
from data.media.processor import configured
from evs import Choice, Uniform, draw
from evs.families import adapter_for
from evs.methods import method_named
from evs.policy import MARK, Policy, load_policy
from evs.transformers import PruningCallback, check_frames, enable_pruning, policy_of
from tests.evs.models import prompts, tiny_model
from tests.evs.test_transformers import batch_of, padded
from tests.runs import ROOT
from train.task import TrainRequest, UptrainTask

pytestmark = pytest.mark.slow
FAMILY = "qwen3_vl"
PROMPTS = [[3, ("video", (4, 2, 3)), 5], [2, ("video", (6, 2, 2)), 1, ("image", (1, 2, 2)), 4]]


class Rows(torch.utils.data.Dataset):
    """Prompts with another video each; a batch of one is what the processor returns."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, Any]:
        return padded(FAMILY, prompts(FAMILY, [PROMPTS[i % 2]], seed=i))


def train(folder: Path, rate: Any = None, *, resume: Path | None = None, **options: Any) -> Trainer:
    model = tiny_model(FAMILY)
    enable_pruning(model, Uniform(0, 0.9) if rate is None else rate, seed=5, **options)
    arguments = TrainingArguments(
        str(folder),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, arguments, train_dataset=Rows(), data_collator=lambda rows: rows[0], callbacks=[PruningCallback()]
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def logged(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Trainer:
    return train(tmp_path_factory.mktemp("whole"))


def test_a_step_draws_one_rate_for_each_of_its_micro_batches(whole) -> None:
    expected = []
    for step in range(4):
        first, second = draw(Uniform(0, 0.9), 2, seed=5, step=step).tolist()
        videos = [first, second]  # rows alternate between one video and one video with an image
        expected.append(sum(videos) / len(videos))
    assert logged(whole, "pruning_rate") == pytest.approx(expected)
    assert all(0.3 < kept < 1 for kept in logged(whole, "kept_fraction"))
    assert len({*logged(whole, "pruning_rate")}) == 4


def test_a_reporter_that_is_listed_after_the_callback_writes_the_rates(whole, tmp_path) -> None:
    model = tiny_model(FAMILY)
    enable_pruning(model, Uniform(0, 0.9), seed=5)
    arguments, writer = replace(whole.args, output_dir=str(tmp_path)), SummaryWriter(str(tmp_path / "events"))
    callbacks = [PruningCallback(), TensorBoardCallback(writer)]
    Trainer(model, arguments, train_dataset=Rows(), data_collator=lambda rows: rows[0], callbacks=callbacks).train()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    for name in ("pruning_rate", "kept_fraction"):
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(logged(whole, name))


def test_a_resumed_run_is_the_uninterrupted_one(whole, tmp_path) -> None:
    again = train(tmp_path, resume=Path(whole.args.output_dir) / "checkpoint-2")
    for name in ("pruning_rate", "kept_fraction", "loss"):
        assert logged(again, name) == logged(whole, name), name


def test_every_checkpoint_says_how_it_was_trained(whole) -> None:
    folder = Path(whole.args.output_dir)
    for path in (folder / "checkpoint-2", folder / "checkpoint-4", folder):
        policy = load_policy(str(path))
        assert policy is not None
        assert (policy.method, policy.scorer_dtype) == ("evs", "bfloat16")
        assert policy.rates == {"name": "Uniform", "low": 0.0, "high": 0.9}


def test_weights_pruned_before_the_tower_are_marked(tmp_path) -> None:
    class Levels(Rows):
        def __getitem__(self, i: int) -> dict[str, Any]:
            return padded(FAMILY, batch_of(FAMILY, [PROMPTS[i % 2]]))

    model = tiny_model(FAMILY)
    enable_pruning(model, Choice([0.25, 0.5]), method="pixel_delta", prune_at="input")
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(
        model, arguments, train_dataset=Levels(), data_collator=lambda rows: rows[0], callbacks=[PruningCallback()]
    )
    trainer.train()
    trainer.save_model()
    policy = load_policy(str(tmp_path))
    assert policy is not None and (policy.prune_at, policy.rates["rates"]) == ("input", [0.25, 0.5])
    (tmp_path / "evs.json").unlink()
    with pytest.raises(ValueError, match="trained with prune_at=input: copy it there too"):
        load_policy(str(tmp_path))
    assert getattr(model.config, MARK) == "input"


def test_ranks_that_share_rows_draw_one_rate(whole) -> None:
    """Of four processes, two and two train on the same rows."""
    model, callback, steps = tiny_model(FAMILY), PruningCallback(), whole.state
    enable_pruning(model, Uniform(0, 0.9), seed=5)
    shared = ParallelismConfig(tp_size=2)
    places = []
    for process in range(4):
        args = SimpleNamespace(
            gradient_accumulation_steps=1, parallelism_config=shared, process_index=process, world_size=4
        )
        callback.on_step_begin(args, steps, None, model=model)
        places.append((model.pruning_state.rank, model.pruning_state.ranks))
    assert places == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_evaluation_does_not_change_what_training_draws(whole, tmp_path) -> None:
    model = tiny_model(FAMILY)
    enable_pruning(model, Uniform(0, 0.9), seed=5, eval_rate=0.75)
    model.eval()(**Rows()[0])
    assert model.pruning_state.rates == (0.75,) and model.pruning_state.step == 0


def test_a_trainer_without_pruning_is_told_so(tmp_path) -> None:
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(tiny_model(FAMILY), arguments, train_dataset=Rows(), callbacks=[PruningCallback()])
    with pytest.raises(ValueError, match="has no pruning: call enable_pruning"):
        trainer.train()


def test_a_policy_takes_its_frames_from_the_processor(checkpoint, tmp_path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint("qwen3_vl"))
    processor.video_processor.fps, processor.video_processor.max_frames = 1.0, 64
    model = tiny_model("qwen3_vl")
    enable_pruning(model, 0.5)
    policy = policy_of(model, processor)
    assert (policy.fps, policy.min_frames, policy.max_frames) == (1.0, 4, 64)
    assert check_frames(processor, policy) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"fps": 1.0}, ["fps=1.0, and the server uses 2.0"]),
        ({"max_frames": 16, "min_frames": 8}, ["min_frames=8", "max_frames=16"]),
        ({"num_frames": 8, "fps": None}, ["num_frames=8 of every video"]),
        ({"do_sample_frames": False}, ["samples no frames itself"]),
    ],
)
def test_differences_in_sampling_are_said(checkpoint, changes, words) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint("qwen3_vl"))
    vars(processor.video_processor).update({"do_sample_frames": True, **changes})
    said = check_frames(processor, Policy())
    assert len(said) == len(words)
    for sentence, word in zip(said, words):
        assert word in sentence


PIXELS = [
    {"max_pixels": 50_176},
    {"min_pixels": 100_352, "max_pixels": 100_352},
    {"min_pixels": 6272, "total_pixels": 602_112},
]


@pytest.mark.parametrize("limits", PIXELS, ids=str)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_frames_of_an_exported_processor_differ_in_nothing(checkpoint, family, limits) -> None:
    """`configured` writes what an export writes."""
    processor, policy = AutoProcessor.from_pretrained(checkpoint(family)), FramePolicy(**limits)
    processor.video_processor = configured(processor.video_processor, policy)
    processor.video_processor.do_sample_frames = True
    said = check_frames(processor, Policy(**limits))
    assert [sentence for sentence in said if "pixels" in sentence] == []
    name, value = list(limits.items())[-1]
    (sentence,) = (s for s in check_frames(processor, Policy(**limits | {name: 2 * value})) if f"{name}=" in s)
    assert f"the server uses {2 * value}" in sentence


def test_pixels_are_compared_for_a_processor_with_a_fixed_number_of_frames(checkpoint) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint("qwen3_vl"))
    vars(processor.video_processor).update(do_sample_frames=True, num_frames=8, fps=None)
    frames, pixels = check_frames(processor, Policy(total_pixels=10**6))
    assert "num_frames=8 of every video" in frames and "total_pixels=" in pixels


def test_a_processor_without_limits_of_pixels_is_told_those_of_the_policy(checkpoint) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint("nemotron_h_omni"))
    *_, sentence = check_frames(processor, Policy(max_pixels=784))
    assert "does not limit pixels by size" in sentence and "'max_pixels': 784" in sentence


def test_the_first_lines_of_the_page_work_when_pasted(checkpoint, clips, capsys) -> None:
    page = (ROOT / "docs" / "transformers.md").read_text()
    blocks = [block for block in re.findall(r"(?:^    .*\n|^\n)+", page, re.MULTILINE) if block.strip()]
    enable, ask = (textwrap.dedent(block) for block in blocks[:2])
    names: dict[str, Any] = {}
    for lines in (enable, ask.replace("clip.mp4", str(clips[0])).replace("=128", "=2")):
        exec(re.sub(r"Qwen/[^\"]+", str(checkpoint("qwen2_5_vl")), lines), names)
    assert len(enable.strip().splitlines()) == 5 and names["model"].pruning_state.rates == (0.75,)
    assert "PruningState(rates=(0.75,)" in capsys.readouterr().out


def test_a_forward_that_was_replaced_since_is_noticed() -> None:
    model = tiny_model("nemotron_h_omni")
    enable_pruning(model, 0.5)
    model.forward = MethodType(type(model).forward, model)
    with pytest.raises(ValueError, match="was replaced after enable_pruning"):
        PruningCallback().on_train_begin(None, None, None, model=model)


def test_a_callback_may_enable_pruning_when_the_framework_loads_the_model(whole, tmp_path) -> None:
    class Enable(PruningCallback):
        def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            enable_pruning(model, Uniform(0, 0.9), seed=5)

    trainer = Trainer(
        tiny_model(FAMILY),
        replace(whole.args, output_dir=str(tmp_path)),
        train_dataset=Rows(),
        data_collator=lambda rows: rows[0],
        callbacks=[Enable()],
    )
    trainer.train()
    assert logged(trainer, "loss") == logged(whole, "loss")
    assert load_policy(str(tmp_path)) == load_policy(whole.args.output_dir)


def test_the_trainer_takes_the_steps_of_our_task(tmp_path) -> None:
    model = tiny_model(FAMILY)
    task = UptrainTask(model, adapter_for(model), method_named("evs", "bfloat16", "merger")).train()
    optimizer, expected = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0), []
    for i in range(5):
        out = task(prompts(FAMILY, [PROMPTS[i % 2]], seed=i), TrainRequest((0.75,)))
        expected.append(out.loss_sum.item() / out.targets)
        (out.loss_sum / out.targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=5,
        logging_steps=1,
        per_device_train_batch_size=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    stock = tiny_model(FAMILY)
    enable_pruning(stock, 0.75, return_logits=False)
    trainer = Trainer(
        stock, arguments, train_dataset=Rows(), data_collator=lambda rows: rows[0], callbacks=[PruningCallback()]
    )
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx(expected, abs=1e-4)
