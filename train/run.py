"""Uptrain a video language model under random pruning rates.

python train/run.py +experiment=qwen_evs_uptrain model.path=DIR_OR_HUB_ID data.train=FILE [key=value ...]
torchrun --nproc-per-node 8 train/run.py +experiment=qwen_evs_uptrain ...      one process a GPU
python train/run.py -m +experiment=... optim.lr=1e-5,2e-5                        a sweep
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import cast

if not __package__:  # run as a file: imports start at the repository root, not in train/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train import cli
from train.config import Config, check
from train.state import signals


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="config")
def job(raw: DictConfig) -> None:
    """One composed configuration, run."""
    from train.build import build_run  # after composing, so that a misspelt key is told at once
    from train.loop import fit

    with cli.one_line_errors():
        config = typed(raw)
        check(config)
        signals.leave_at_once(config.train.signals)
        run = build_run(config)
        if run is None:
            return
        status = fit(run.parts, run.steps, config, run.first_step)
        run.parts.recorder.close()
    if status:
        raise SystemExit(status)
    if run.parts.engine.is_main_process:
        end(Path(config.run_dir), run.forecast_gib)


def end(run_dir: Path, forecast_gib: float | None) -> None:
    """What the run did and what to do with it, printed and left in its folder."""
    from train.report import summary

    done = summary.summarize(run_dir, forecast_gib)
    summary.write(done, run_dir)
    print(summary.text(done, run_dir))


def typed(raw: DictConfig) -> Config:
    """The composed YAML as dataclasses; a job of a sweep gets a folder of its own under `run_dir`."""
    if missing := sorted(OmegaConf.missing_keys(raw)):
        raise ValueError(f"missing {', '.join(missing)}: give {' '.join(f'{key}=...' for key in missing)}")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raw.run_dir = str(Path(raw.run_dir) / str(HydraConfig.get().job.num))
    schema = OmegaConf.structured(Config)
    try:  # once more, since `+key=value` adds what the schema does not know
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.to_container(raw))))
    except OmegaConfBaseException as error:
        raise ValueError(cli.config_error(error, sys.argv[1:], list(cli.leaves(schema)))) from error


def register() -> None:
    """What composing the YAML needs to know of us: the schema, and the name of the chosen experiment."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("experiment", experiment, replace=True)


def experiment() -> str:
    """The experiment that was chosen; `uptrain` where none was."""
    chosen = HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    return chosen or "uptrain"


def main() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's own handler prints several lines
    sys.argv[1:] = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]  # the deepspeed launcher's
    register()
    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        cli.fail(cli.config_error(error, sys.argv[1:], list(cli.leaves(OmegaConf.structured(Config)))))


if __name__ == "__main__":
    main()
