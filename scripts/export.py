"""Export a run's checkpoint as a stock Hugging Face folder with the base model's files and keys, and a model card.

    python scripts/export.py run=DIR out=DIR [checkpoint=DIR] [results=[base.json,own.json]] [push=user/name]

`evs.json` next to the weights holds the settings of the training, and the processor's configuration its frame sizes.
The command prints how to serve the checkpoint. Run it again on an existing export to update the card and the curve, or
to push; the weights are then left as they are.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from huggingface_hub import snapshot_download

from evs.policy import Policy, read
from train import cli
from train.checkpoint.checkpoint import complete, step_of
from train.checkpoint.manifest import NAME
from train.config import Config
from train.export.card import HubMetadata, Measured, base_metadata, is_hub_id, model_card
from train.export.hub import push
from train.export.serving_metadata import lora_flags, not_pruned, policy_of, serve_command, write_processor
from train.export.weights import ADAPTER, check_shapes, copy_companions, open_files, write_adapter, write_weights
from train.reports.curve import evaluations, from_results, plot
from train.run_folder import read_config


@dataclass
class Options:
    run: str  # the run_dir of a training run
    out: str  # a new folder, or an earlier export of this checkpoint
    checkpoint: str | None = None  # a checkpoint's folder; default: the newest of the run
    # JSON files of scripts/evaluate.py for the card; the last one is of this checkpoint
    results: list[str] = field(default_factory=list)
    adapter: bool = False  # export the LoRA adapter alone instead of merging it
    method: str | None = None  # pruning method for serving, if the run drew from several; null: the first
    ema: bool = False  # export the average of the weights (train.ema)
    push: str | None = None  # Hub repository to push to, user/name
    private: bool = False  # create the pushed repository as private
    base_model: str | None = None  # Hub id for the card; default: model.path, if it is one
    license: str | None = None  # for the card; default: that of the base model
    datasets: list[str] = field(default_factory=list)  # for the card: Hub ids of the training data


@dataclass(frozen=True)
class Trained:
    """The source of an export."""

    config: Config
    checkpoint: Path
    weights: Path  # folder of the weights in it, or of their average
    base: Path  # folder of the base model


def main(options: Options) -> None:
    check(options)
    run, out = Path(options.run), Path(options.out)
    config = read_config(run)
    checkpoint = Path(options.checkpoint) if options.checkpoint else newest(run)
    measured = measured_by(run, checkpoint, options)
    policy = replace(policy_of(config, options.method), weights=identity(checkpoint, options), curve=by_rate(measured))
    trained = Trained(config, checkpoint, weights_of(checkpoint, options.ema), base_folder(config))
    hub = hub_metadata(options, trained, policy)
    if not exported(out, policy):
        write(trained, policy, out, hub)
    if measured.curves:
        plot(measured.curves, out / "curve.png", "Accuracy by pruning rate")
    model_card(config, policy, checkpoint.name, measured, hub).save(out / "README.md")
    policy.write(out)
    explain(policy, measured, options, trained, hub)
    if options.push:
        print(f"pushed: {push(out, options.push, options.private)}")


def check(options: Options) -> None:
    """Raise ValueError for options that are wrong whatever the run holds."""
    ids_by_key: dict[str, Sequence[str | None]] = {
        "push": [options.push],
        "base_model": [options.base_model],
        "datasets": options.datasets,
    }
    for key, ids in ids_by_key.items():
        if wrong := [id for id in ids if id is not None and not is_hub_id(id)]:
            raise ValueError(f"{key}={wrong[0]} is not a Hub id: give user/name")
    if options.private and options.push is None:
        raise ValueError("private=true has no effect without push=user/name: give both")


def newest(run: Path) -> Path:
    checkpoints = complete(run / "checkpoints")
    if not checkpoints:
        raise ValueError(f"run={run} holds no complete checkpoint: let it reach train.save_every steps")
    return checkpoints[-1]


def weights_of(checkpoint: Path, ema: bool) -> Path:
    """The folder of the exported weights. ValueError if the average is requested and the checkpoint has none."""
    folder = checkpoint / ("ema" if ema else "model")
    if not folder.is_dir():
        raise ValueError(f"ema=true: {checkpoint} holds no average of the weights: train with train.ema=0.999")
    return folder


def measured_by(run: Path, checkpoint: Path, options: Options) -> Measured:
    """The curves in `results`; without them, the run's own at its beginning and at the checkpoint (not of the
    average)."""
    if options.results:
        curves = [from_results(Path(path)) for path in options.results]
        return Measured(curves, curves[-1])
    by_step, step = evaluations(run), -1 if options.ema else step_of(checkpoint)
    shown = sorted({*list(by_step)[:1], step} & by_step.keys())
    return Measured([by_step[shown_step] for shown_step in shown], by_step.get(step))


def by_rate(measured: Measured) -> dict[str, float]:
    """The checkpoint's accuracy by rate, in the form of `evs.json`."""
    return {f"{rate:g}": value for rate, value in sorted(measured.own.accuracy.items())} if measured.own else {}


def identity(checkpoint: Path, options: Options) -> str:
    """An identifier that differs between checkpoints, runs, adapters and averages."""
    manifest = checkpoint / NAME
    if not manifest.is_file():
        raise ValueError(f"checkpoint={checkpoint} holds no {NAME}: give a finished one, .../checkpoints/step_NNNNNNNN")
    digest = hashlib.blake2b(manifest.read_bytes(), digest_size=8).hexdigest()
    return f"{checkpoint.name} {digest}{' adapter' * options.adapter}{' ema' * options.ema}"


def exported(out: Path, policy: Policy) -> bool:
    """True if the folder holds these weights, False if it is new or empty. ValueError if it holds anything else."""
    if not out.exists() or not any(out.iterdir()):
        return False
    existing = read(out)  # written last, so that all other files are complete
    if existing is None or existing.weights != policy.weights:
        content = f"holds {existing.weights or 'another export'}" if existing else "is not empty"
        raise ValueError(f"out={out} {content}: give a new folder")
    return True


def base_folder(config: Config) -> Path:
    """The base model's files, from its folder or from the Hub's cache."""
    local = Path(config.model.path)
    return local if local.is_dir() else Path(snapshot_download(config.model.path, revision=config.model.revision))


def write(trained: Trained, policy: Policy, out: Path, hub: HubMetadata) -> None:
    """Write all files except the card and `evs.json`."""
    out.mkdir(parents=True, exist_ok=True)
    if hub.adapter:
        write_adapter(trained.weights, out, hub.base_model or trained.base.resolve().name)
    else:
        write_weights(trained.config.model, trained.weights, out)
        check_shapes(trained.base, out)
    copy_companions(trained.base, out)
    write_processor(out, policy)
    open_files(out)


def hub_metadata(options: Options, trained: Trained, policy: Policy) -> HubMetadata:
    """Metadata of the base model, replaced by the options that are given."""
    base = base_metadata(trained.base, trained.config.model.path)
    hub = replace(base, datasets=tuple(options.datasets), adapter=options.adapter)
    if options.adapter:
        hub = replace(hub, lora_flags=adapter_flags(trained, policy))
    if options.license:
        hub = replace(hub, license=options.license, license_name=None, license_link=None)
    return replace(hub, base_model=options.base_model or hub.base_model)


def adapter_flags(trained: Trained, policy: Policy) -> str:
    """vLLM's flags for the adapter. If it cannot be served, the reason is printed and the result is empty."""
    if not (trained.weights / ADAPTER).is_file():
        raise ValueError("adapter=true: this run trained without LoRA (model.lora.r): remove adapter=true")
    try:
        return lora_flags(trained.weights, trained.base, policy)
    except ValueError as error:
        print(f"the adapter cannot be served: {error}")
        return ""


def explain(policy: Policy, measured: Measured, options: Options, trained: Trained, hub: HubMetadata) -> None:
    """Print the export's folder, how to serve it, and what is missing."""
    out, rate = shlex.quote(options.out), measured.recommended
    print(f"checkpoint: {options.out} (from {trained.checkpoint})")
    if not hub.adapter:
        print(f"serve it: {serve_command(policy, out, rate, hub.architecture)}")
    elif hub.lora_flags:
        model, lora = shlex.quote(trained.config.model.path), f"{hub.lora_flags} --lora-modules evs={out}"
        print(f"serve it: {serve_command(policy, model, rate, hub.architecture, lora)}")
        print('requests name the adapter: "model": "evs"')
    if reason := not_pruned(policy, hub.architecture):
        print(reason)
    if measured.own is None:
        evaluate = cli.command("evaluate", f"model={options.out}", "data=FILE", "out=curve.json")
        print(f"not evaluated: {evaluate}, then add the curve:")
        print(f"  {cli.command('export', f'run={options.run}', f'out={options.out}')} 'results=[curve.json]'")
    if hub.adapter and hub.base_model is None:
        print("the adapter does not say where its base model is: give base_model=user/name")
    if policy.times == "real":
        print(
            "trained on data.times=real: servers give the model index / average rate, which differs at a variable rate"
        )


if __name__ == "__main__":
    cli.run(main, Options)
