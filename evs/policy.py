"""What a checkpoint was trained on, in a file next to its weights, for every program that reads the weights.

`evs.json` is one flat JSON object, the fields of `Policy` and the file's own `version`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evs.families.servers import ALL_FRAMES, LOADER, LOADERS, SERVED

FILE = "evs.json"
MARK = "evs_prune_at"  # in config.json, of weights that no server may prune without their evs.json
VERSION = 1
KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "dict": dict, "None": type(None)}


@dataclass(frozen=True)
class Policy:
    """Which frames, pixels, tokens and positions a checkpoint has learned from."""

    method: str = "evs"  # which tokens survive; evs.methods
    prune_at: str | int = "merger"  # after the vision tower, before it ("input"), or before one of its blocks
    scheme: str = "preserve"  # positions under pruning
    scorer_dtype: str | None = "bfloat16"  # None: the dtype of the features
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int | None = None  # of a frame; None: as the processor's own configuration says
    max_pixels: int | None = None  # of a frame
    total_pixels: int | None = None  # of all frames of a video together
    times: str = "server"  # frame times given to the model: index / average rate, or real
    rates: dict[str, Any] = field(default_factory=dict)  # the distribution that pruning rates were drawn from
    curve: dict[str, float] = field(default_factory=dict)  # accuracy by pruning rate; empty: not evaluated
    weights: str = ""  # which checkpoint of which run was exported
    package: str = ""  # version of evs-uptrain that wrote it, whose plugin serves it

    @property
    def max_duration(self) -> float:
        """The duration in seconds of `max_frames` frames at `fps`, which is how GLM's servers state the limit."""
        return self.max_frames / self.fps

    def write(self, folder: str | Path) -> Path:
        """Writes `folder`/evs.json, marks the config.json next to it, and returns the path of the former."""
        path = Path(folder) / FILE
        _mark(Path(folder) / "config.json", {} if self.prune_at == "merger" else {MARK: self.prune_at})
        path.write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n")
        return path


def package_version() -> str:
    """Version of this package; empty if it runs from a clone that is not installed."""
    try:
        return version("evs-uptrain")
    except PackageNotFoundError:
        return ""


def loader_options(policy: Policy, architecture: str) -> dict[str, Any]:
    """The options of the server's video loader with which it samples the frames of the training."""
    options = LOADERS.get(architecture, LOADER)
    return {option: getattr(policy, field) if field else ALL_FRAMES for option, field, _ in options}


def served_method(policy: Policy, architecture: str) -> str | None:
    """The `--video-pruning-method` with which vLLM and its plugin prune as in training; None if none does.

    An empty `architecture` stands for any that the method is served with.
    """
    if policy.scheme != "preserve" and (policy.method, policy.prune_at) != ("evs", "merger"):
        return None  # such positions are a stock server's, which prunes by EVS
    method, architectures = SERVED.get((policy.method, policy.prune_at), ("", ()))
    return method if method and architecture in ("", *architectures) else None


def highest_rate(rates: dict[str, Any]) -> float | None:
    """The highest pruning rate that a distribution draws, from its configuration; None if that does not bound it."""
    if parts := rates.get("components") or rates.get("stages"):
        bounds = [highest_rate(part) for part in parts]
        return None if None in bounds else max(bound for bound in bounds if bound is not None)
    return max(rates["rates"]) if rates.get("rates") else rates.get("high", rates.get("rate"))


def load_policy(model: str, revision: str | None = None) -> Policy | None:
    """The policy of a local folder or of a repository on the Hub; errors as in `read`.

    None if there is no evs.json, or the Hub cannot be reached and its cache holds none.
    """
    if Path(model).is_dir():
        return read(model)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    folder = None
    for name in ("config.json", FILE):  # the first is marked if the weights need the second
        try:
            folder = Path(hf_hub_download(model, name, revision=revision)).parent
        except (OSError, HFValidationError):
            continue
    return read(folder) if folder else None


def read(folder: str | Path) -> Policy | None:
    """The policy of the checkpoint in `folder`, or None if there is no evs.json.

    Raises ValueError if the file is damaged, or if it is missing and config.json says that the weights need it.
    """
    path, config = Path(folder) / FILE, Path(folder) / "config.json"
    if not path.is_file():
        if config.is_file() and (prune_at := json.loads(config.read_text()).get(MARK)) is not None:
            raise ValueError(
                f"{path} is missing, and the weights were trained with prune_at={prune_at}: copy it there too"
            )
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}): export the checkpoint again") from None
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise ValueError(f"{path}: not an evs.json of version {VERSION}: export the checkpoint again with this package")
    if unknown := values.keys() - {key.name for key in fields(Policy)}:
        raise ValueError(f"{path}: unknown key {min(unknown)!r}: update this package or export the checkpoint again")
    for key in fields(Policy):
        if key.name in values and not _fits(values[key.name], str(key.type)):
            raise ValueError(
                f"{path}: {key.name}={values[key.name]!r:.60} is not {key.type}: export the checkpoint again"
            )
    return Policy(**values)


def _fits(value: Any, annotation: str) -> bool:
    """True if a JSON value has the type of an annotation of `Policy`, as "str | None"."""
    kinds = [KINDS[name.partition("[")[0].strip()] for name in annotation.split("|")]
    return not isinstance(value, bool) and any(isinstance(value, kind) for kind in kinds)


def _mark(config: Path, marks: dict[str, Any]) -> None:
    """Replaces the marks in a configuration file, if there is one."""
    values = json.loads(config.read_text()) if config.is_file() else marks
    marked = {key: value for key, value in values.items() if key != MARK} | marks
    if marked != values:
        config.write_text(json.dumps(marked, indent=2) + "\n")
