"""What a checkpoint was trained on, in a file beside its weights: every side that reads the weights can follow it.

`evs.json` is one flat JSON object, the fields of `Policy` and the file's own `version`. Standard library only, so
that a server can read it before it loads anything.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FILE = "evs.json"
MARK = "evs_prune_at"  # in config.json, of weights that no server may prune without their evs.json
VERSION = 1
# Of a server's loader of videos: its option, the field of Policy that says it, what holds where nothing is said.
LOADER = (("fps", "fps", 2.0), ("min_frames", "min_frames", 4), ("max_frames", "max_frames", 768))
EVEN_LOADER = (("fps", "fps", -1), ("num_frames", "max_frames", 32))
NEMOTRON = "NemotronH_Omni_Reasoning_V3"
LOADERS = {NEMOTRON: EVEN_LOADER}  # by architecture, where it is another than Qwen's


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

    def write(self, folder: str | Path) -> Path:
        """Writes `folder`/evs.json, marks a config.json beside it, and returns the path of the former."""
        path = Path(folder) / FILE
        _mark(Path(folder) / "config.json", {} if self.prune_at == "merger" else {MARK: self.prune_at})
        path.write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n")
        return path


def loader_options(policy: Policy, architecture: str) -> dict[str, Any]:
    """What the server's loader must be given so that it samples the frames of the training."""
    return {option: getattr(policy, field) for option, field, _ in LOADERS.get(architecture, LOADER)}


def read(folder: str | Path) -> Policy | None:
    """The policy of the checkpoint in `folder`; None where there is no evs.json. ValueError for a damaged one, and
    where weights need it that was not copied with them."""
    path, config = Path(folder) / FILE, Path(folder) / "config.json"
    if not path.is_file():
        if config.is_file() and (place := json.loads(config.read_text()).get(MARK)) is not None:
            raise ValueError(
                f"{path} is missing, and the weights were trained with prune_at={place}: copy it there too"
            )
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}): export the checkpoint again") from None
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise ValueError(f"{path}: not an evs.json of version {VERSION}: export the checkpoint again with this package")
    if unknown := values.keys() - {each.name for each in fields(Policy)}:
        raise ValueError(f"{path}: unknown key {min(unknown)!r}: update this package or export the checkpoint again")
    return Policy(**values)


def _mark(config: Path, marks: dict[str, Any]) -> None:
    """Leaves a configuration with these marks alone, if there is one."""
    values = json.loads(config.read_text()) if config.is_file() else marks
    marked = {key: value for key, value in values.items() if key != MARK} | marks
    if marked != values:
        config.write_text(json.dumps(marked, indent=2) + "\n")
