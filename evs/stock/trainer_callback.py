"""A callback for transformers' Trainer and its heirs: it counts steps, logs rates and writes evs.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from evs.policy import MARK, Policy, package_version
from evs.stock.frame_sampling import frame_fields
from evs.stock.pruning_state import is_bound, model_of, setting_of

logger = logging.get_logger(__name__)


class PruningCallback(TrainerCallback):
    """For a model with pruning enabled: `Trainer(model, ..., callbacks=[PruningCallback(processor)])`.

    Rates follow from the step and the micro-batch, so that a resumed run draws the same ones. The log gains
    `pruning_rate` and `kept_fraction`, of the main rank, means since the last log. Every checkpoint and, at the end,
    `output_dir` gets an evs.json. Without a processor, the trainer's own says how frames were sampled.
    """

    def __init__(self, processor: Any = None) -> None:
        self.processor = processor
        self.rates: list[float] = []
        self.tokens = [0, 0]  # before and after pruning

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        setting, base = setting_of(model), model_of(model)
        if not is_bound(base):
            raise ValueError(
                f"the forward of {type(base).__name__} was replaced after enable_pruning: call enable_pruning again"
            )
        if args.report_to:
            logger.warning_once(
                f"report_to={args.report_to} is called before PruningCallback and misses pruning_rate and "
                'kept_fraction: set report_to="none" and list the callbacks of the reporters after PruningCallback'
            )
        if setting.method.prune_at != "merger":  # save_pretrained writes it: see evs.policy
            setattr(base.config, MARK, setting.method.prune_at)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        now = setting_of(model).state
        now.counted, now.step, now.micro_batch = True, state.global_step, 0
        now.accumulation = args.gradient_accumulation_steps
        shared = getattr(args, "parallelism_config", None)  # these ranks train on the same rows
        size = shared.non_data_parallel_size if shared else 1
        now.rank, now.ranks = args.process_index // size, args.world_size // size

    def on_substep_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._record(model)
        setting_of(model).state.micro_batch += 1

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._record(model)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs is None or "loss" not in logs or not self.tokens[0]:
            return
        values = {"kept_fraction": self.tokens[1] / self.tokens[0]}
        if self.rates:
            values["pruning_rate"] = sum(self.rates) / len(self.rates)
        logs |= values
        state.log_history[-1] |= values
        self.rates, self.tokens = [], [0, 0]

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._write(Path(args.output_dir) / f"checkpoint-{state.global_step}", args, model, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._write(Path(args.output_dir), args, model, kwargs)

    def _record(self, model: Any) -> None:
        now = setting_of(model).state
        self.rates += now.rates
        self.tokens = [self.tokens[0] + now.tokens_before, self.tokens[1] + now.tokens_after]

    def _write(self, folder: Path, args: Any, model: Any, kwargs: dict[str, Any]) -> None:
        if args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            policy_of(model, self.processor or kwargs.get("processing_class")).write(folder)


def policy_of(model: Any, processor: Any = None) -> Policy:
    """What evs.json says of a model with pruning enabled. Frames are the server's defaults without a processor."""
    setting = setting_of(model)
    sampled = frame_fields(processor) if hasattr(processor, "video_processor") else {}
    return Policy(
        method=setting.method.name,
        prune_at=setting.method.prune_at,
        scheme=setting.scheme,
        scorer_dtype=getattr(setting.method, "dtype", None),
        rates=_described(setting.rates),
        package=package_version(),
        **sampled,
    )


def _described(value: Any) -> Any:
    """A distribution as it stands in evs.json."""
    if is_dataclass(value):
        own = {each.name: _described(getattr(value, each.name)) for each in fields(value)}
        return {"name": type(value).__name__, **own}
    return [_described(each) for each in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
