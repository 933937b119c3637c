"""A run's checkpoint as a stock Hugging Face folder: the base model's files and keys, the trained weights, a card.

Beside them `evs.json` says what was trained and the processor's configuration the sizes; what is printed, how to serve.

python scripts/export.py run=DIR out=DIR [checkpoint=DIR] [push=user/name]
"""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from huggingface_hub import HfApi, snapshot_download
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from train import cli
from train.config import Config
from train.experts import publish_experts
from train.report.card import model_card
from train.report.curve import from_run, plot
from train.served import policy_of, serve_command, write_processor
from train.state.checkpoint import complete


@dataclass
class Options:
    run: str
    out: str
    checkpoint: str | None = None  # default: the run's newest
    push: str | None = None  # user/name on the Hub


def main(options: Options) -> None:
    run, out = Path(options.run), Path(options.out)
    config = run_config(run)
    checkpoint = Path(options.checkpoint) if options.checkpoint else newest(run)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out} is not empty: give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    base = base_folder(config)
    write_weights(config, checkpoint, out)
    copy_companions(base, out)
    check_shapes(base, out)
    policy = policy_of(config)
    policy.write(out)
    write_processor(out, policy)
    curves = from_run(run)
    if curves:
        plot(curves, out / "curve.png", "Accuracy by pruning rate, before and after uptraining")
    (out / "README.md").write_text(model_card(config, checkpoint.name, curves))
    print(f"checkpoint: {out} (from {checkpoint})")
    print(f"serve it: {serve_command(policy, shlex.quote(str(out)))}")
    if policy.times == "real":
        print(
            "trained on data.times=real: servers give the model index / average rate, which differs at a variable rate"
        )
    if options.push:
        api = HfApi()
        api.create_repo(options.push, exist_ok=True)
        api.upload_folder(repo_id=options.push, folder_path=out)
        print(f"pushed: {options.push}")


def run_config(run: Path) -> Config:
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"run={run} holds no config.yaml: give the run_dir of a training run")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    assert isinstance(config, Config)
    return config


def newest(run: Path) -> Path:
    found = complete(run / "checkpoints")
    if not found:
        raise ValueError(f"run={run} holds no complete checkpoint: let it reach train.save_every steps")
    return found[-1]


def base_folder(config: Config) -> Path:
    """The base model's files, from its folder or from the Hub's cache."""
    local = Path(config.model.path)
    return local if local.is_dir() else Path(snapshot_download(config.model.path, revision=config.model.revision))


def write_weights(config: Config, checkpoint: Path, out: Path) -> None:
    """The base model, read so that it remembers its keys and dtype, with the trained weights in place of its own."""
    model = AutoModelForImageTextToText.from_pretrained(config.model.path, revision=config.model.revision, dtype="auto")
    if config.model.lora.r is not None:
        model = PeftModel.from_pretrained(model, str(checkpoint / "model")).merge_and_unload()
    else:
        fill(model, checkpoint / "model")
    model.save_pretrained(out)
    publish_experts(out, model.config)


def fill(model: Any, folder: Path) -> None:
    """Overwrite every weight of the model from a folder of safetensors."""
    left = set(model.state_dict())
    for path in sorted(folder.glob("*.safetensors")):
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
        assert not unexpected, f"{path} holds {unexpected[0]}, which the model has not"
        left &= set(missing)
    left -= set(model.all_tied_weights_keys)
    assert not left, f"{folder} lacks {sorted(left)[0]}"


def copy_companions(base: Path, out: Path) -> None:
    """Everything of the base that is no weight and no card, as it stands: configuration, processor, chat template."""
    for path in sorted(base.iterdir()):
        weights = ".safetensors" in path.name or path.suffix in {".bin", ".pth", ".pt"}
        if path.is_file() and not weights and path.name not in {"README.md", ".gitattributes", "curve.png"}:
            shutil.copyfile(path, out / path.name)


def check_shapes(base: Path, out: Path) -> None:
    """Raise unless the exported weights have the base's keys and shapes."""
    theirs, ours = weight_shapes(base), weight_shapes(out)
    if theirs and theirs != ours:
        name = min(key for key, _ in theirs.items() ^ ours.items())
        raise ValueError(f"{out}: keys or shapes differ from the base model's, e.g. {name}: update transformers")


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    return shapes


if __name__ == "__main__":
    cli.run(main, Options)
