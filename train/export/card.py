"""The model card of an exported checkpoint, from what the run recorded: front matter that the Hub reads, and prose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from evs.families.servers import FIRST_VERSION, RECOMMENDED_VLLM, VLLM_VERSIONS, WITHOUT_PLUGIN
from evs.policy import Policy
from train.config import Config, TrainConfig
from train.export.serving_metadata import architecture, not_pruned, serve_command
from train.reports.curve import POINT, Curve, table
from train.reports.equal_tokens import equal_tokens_text

BODY = Template("""
# $name

$origin uptrained to stay accurate when Efficient Video Sampling
([arXiv 2510.14624](https://arxiv.org/abs/2510.14624)) prunes its video tokens. $form

## Serve it

$rate

$serving

## Training

$checkpoint of $steps steps; rates drawn from `$rates`$views, pruned by `$method`; frozen: $frozen; learning rate $lr.

## Accuracy by pruning rate (%)

$curve
""")
SERVING = Template("""\
    $install
    $serve

$notes`evs.json` holds the frames, pixels, rates, scores and curve of the training; frame rate and limits are given on
the command line, since servers read them from no file.""")
PLUGIN = "{} The plugin needs vLLM {}; it refuses other versions at start. "
WITHOUT: dict[str | int, str] = {  # by prune_at
    "merger": "Without the plugin, vLLM keeps the same tokens and puts them at other positions than in training.",
    "input": "Without the plugin, vLLM prunes other tokens, after the vision tower and by EVS.",
}
STOCK_POSITIONS = "The checkpoint was trained at the positions of stock vLLM: the command turns the plugin off."
STOCK = "A stock checkpoint: the base model's keys, configuration and processor, its frame sizes those of the training."
ADAPTER = (
    "This is a LoRA adapter: `AutoModelForImageTextToText.from_pretrained` loads it with its base model (peft). "
    "Requests to the server below name it `evs`."
)
UNKNOWN = """\
Not evaluated yet. To measure this checkpoint and add its curve here, to `evs.json` and to the metadata:

    python scripts/evaluate.py model=DIR data=FILE rates=[0,0.5,0.75] out=curve.json
    python scripts/export.py run=RUN out=DIR results=[curve.json]"""


@dataclass(frozen=True)
class HubMetadata:
    """Metadata of a checkpoint for the Hub; None or empty if unknown."""

    base_model: str | None = None  # a Hub id
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    datasets: tuple[str, ...] = ()  # Hub ids
    adapter: bool = False
    lora_flags: str = ""  # vLLM's flags for the adapter; empty if it cannot be served
    architecture: str = ""  # by the name that servers use


@dataclass(frozen=True)
class Measured:
    """Curves for the card, and the checkpoint's own curve if it was evaluated."""

    curves: Sequence[Curve] = ()
    own: Curve | None = None

    @property
    def recommended(self) -> float | None:
        return self.own.recommended() if self.own else None


def model_card(config: Config, policy: Policy, checkpoint: str, measured: Measured, hub: HubMetadata) -> ModelCard:
    """The model card. It shows `curve.png` from the same folder if there are curves."""
    name = config.tracker.name or config.run_dir.rstrip("/").rsplit("/", 1)[-1]
    curves, best = measured.curves, measured.recommended
    shown = [f"![accuracy by rate](curve.png)\n\n{table(curves)}"] if curves else []
    shown += equal_tokens_text(measured.own.baselines) if measured.own else []
    body = BODY.substitute(
        name=name,
        origin=f"[{hub.base_model}](https://huggingface.co/{hub.base_model})," if hub.base_model else "A model",
        form=ADAPTER if hub.adapter else STOCK,
        rate=advice(measured.own, best),
        serving=_serving(policy, best, hub),
        checkpoint=checkpoint,
        steps=config.train.steps,
        rates=_call(config.rate),
        views=in_views(config.train),
        method=_method(config.method),
        frozen=", ".join(config.model.freeze) or "nothing",
        lr=config.optim.lr,
        curve="\n\n".join(shown if measured.own else [*shown, UNKNOWN]),
    )
    return ModelCard(f"---\n{metadata(name, measured.own, hub).to_yaml()}\n---\n{body}")


def in_views(train: TrainConfig) -> str:
    """A phrase about views and distillation; empty if the run used neither."""
    distill, text = train.distill, ""
    if train.views > 1:
        text += f" in {train.views} views of each video"
        text += "" if train.anchor_rate is None else f", one of them at rate {train.anchor_rate:g}"
    if distill.weight:
        teacher = "the least pruned view" if distill.teacher == "view" else "the model without its LoRA"
        text += f", taught by {teacher} ({distill.direction} KL times {distill.weight:g}, temperature "
        text += f"{distill.temperature:g})"
    if distill.base_weight:
        text += f", unpruned views held to the model without its LoRA (KL times {distill.base_weight:g})"
    return text


def _serving(policy: Policy, rate: float | None, hub: HubMetadata) -> str:
    served = hub.architecture
    if hub.adapter and not hub.lora_flags:
        return "vLLM does not serve this adapter. Export the run without `adapter=true` to serve it."
    lora = f"{hub.lora_flags} --lora-modules evs=<this adapter>" if hub.adapter else ""
    model = (hub.base_model or "<the base model>") if hub.adapter else "<this checkpoint>"
    without = WITHOUT_PLUGIN.get(served, WITHOUT.get(policy.prune_at, ""))
    without = without if policy.scheme == "preserve" else STOCK_POSITIONS
    install, notes = f"pip install vllm=={RECOMMENDED_VLLM}", f"{not_pruned(policy, served)} "
    if not notes.strip():
        install += " .    # the plugin, in a clone of evs-uptrain"
        notes = PLUGIN.format(without, " or ".join(VLLM_VERSIONS[FIRST_VERSION.get(served, 0) :]))
    return SERVING.substitute(install=install, serve=serve_command(policy, model, rate, served, lora), notes=notes)


def advice(curve: Curve | None, rate: float | None) -> str:
    """One sentence on the recommended pruning rate."""
    if curve is None or rate is None:
        return "No rate is recommended: the accuracy of this checkpoint by rate is not known (see below)."
    cost = 100 * (curve.accuracy[0.0] - curve.accuracy[rate])
    if rate == 0:
        return f"Recommended rate: 0. No measured rate above it stays within {100 * POINT:g} point of it."
    return (
        f"Recommended rate: {rate:g}, the highest measured one within {100 * POINT:g} point of rate 0: "
        f"{100 * curve.accuracy[rate]:.1f} % against {100 * curve.accuracy[0.0]:.1f} % ({cost:+.1f} points less)."
    )


def metadata(name: str, curve: Curve | None, hub: HubMetadata) -> ModelCardData:
    """The front matter; metrics become a `model-index`."""
    license = {key: value for key in ("license", "license_name", "license_link") if (value := getattr(hub, key))}
    return ModelCardData(
        base_model=hub.base_model,
        base_model_relation=("adapter" if hub.adapter else "finetune") if hub.base_model else None,
        datasets=list(hub.datasets) or None,
        library_name="peft" if hub.adapter else "transformers",
        pipeline_tag="video-text-to-text",
        tags=["video", "token-pruning", "efficient-video-sampling"],
        model_name=name,
        eval_results=results(curve) if curve else None,
        **license,
    )


def results(curve: Curve) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="video-text-to-text",
            dataset_type=curve.data,
            dataset_name=curve.data,
            metric_type="accuracy",
            metric_name=f"accuracy at pruning rate {rate:g}",
            metric_value=round(100 * accuracy, 2),
        )
        for rate, accuracy in sorted(curve.accuracy.items())
    ]


def base_metadata(base: Path, path: str) -> HubMetadata:
    """The base model's id, where `path` is one, the licence on the card in its folder, and its architecture."""
    card = base / "README.md"
    data: dict[str, Any] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    return HubMetadata(
        base_model=path if is_hub_id(path) and not Path(path).exists() else None,
        license=data.get("license"),
        license_name=data.get("license_name"),
        license_link=data.get("license_link"),
        architecture=architecture(base),
    )


def is_hub_id(text: str) -> bool:
    """True if the text has the form user/name."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def _method(node: dict[str, Any]) -> str:
    if several := node.get("methods"):
        return " or ".join(map(_call, several.values())) + ", drawn for every step"
    return _call(node)


def _call(node: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in node.items() if key != "_target_")
    return f"{node['_target_'].rsplit('.', 1)[-1]}({arguments})"
