"""Uptrain a video language model under random pruning rates.

python train/run.py +experiment=qwen_evs_uptrain model.path=DIR_OR_HUB_ID data.train=FILE [key=value ...]
torchrun --nproc-per-node 8 train/run.py +experiment=qwen_evs_uptrain ...      one process a GPU
python train/run.py -m +experiment=... optim.lr=1e-5,2e-5                        a sweep
python train/run.py -m hydra/launcher=submitit_slurm +experiment=... optim.lr=1e-5,2e-5    each job a SLURM job
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import cast

if not __package__:  # run as a file: imports start at the repository root, not in train/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    paths = (sys.path[0], os.environ.get("PYTHONPATH"))  # so that jobs that a launcher starts elsewhere find it too
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

from train.faults import signals, watchdog

if __name__ == "__main__":  # the imports take long enough to be interrupted, or to hang on a file system
    signals.exit_at_once(signals.DEFAULT)
    watchdog.WATCHDOG.start(sys.argv)

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from submitit.core.utils import UncompletedJobError

from data.progress import hide_library_bars
from train import cli, usage
from train.checks import check
from train.config import Config
from train.faults.error_lines import one_line_failures
from train.faults.first_line import first_line


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="config")
def job(raw: DictConfig) -> None:
    """One composed configuration, run; as a job of a sweep, it fails alone."""
    from train import distributed as engine
    from train import sweep  # after composing, so that a misspelt key is reported at once

    engine.join()
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        folder = Path(raw.run_dir) / str(hydra_config.job.num)
        sweep.attempt(lambda begun: train(raw, folder, begun), folder, list(hydra_config.overrides.task))
    else:
        train(raw)


def train(raw: DictConfig, folder: Path | None = None, begun: bool = False) -> None:
    """Build and fit. In a `folder` that a sweep has begun before, from where it ended."""
    from train.build import build_run
    from train.loop import fit

    with cli.one_line_errors(), one_line_failures():
        if folder is not None:
            raw.run_dir = str(folder)
            raw.resume = raw.resume or ("auto" if begun else None)
        config = typed(raw)
        check(config)
        signals.exit_at_once(config.train.signals)
        with watchdog.WATCHDOG.watching(Path(config.run_dir) / "stall", 60 * config.engine.timeout_minutes):
            run = build_run(config)
            if run is None:
                return
            status = fit(run.parts, run.steps, config, run.first_step)
            watchdog.WATCHDOG.at("end")
            run.parts.recorder.close()
            if not status and run.parts.engine.is_main_process:
                end(Path(config.run_dir), run.forecast_gib)
    if status:
        raise SystemExit(status)


def end(run_dir: Path, forecast_gib: float | None) -> None:
    """What the run did and what to do with it, printed and left in its folder."""
    from train.reports import summary

    done = summary.summarize(run_dir, forecast_gib)
    summary.write(done, run_dir)
    print(summary.text(done, run_dir))


def typed(raw: DictConfig) -> Config:
    """The composed YAML as dataclasses."""
    if missing := sorted(OmegaConf.missing_keys(raw)):
        raise ValueError(f"missing {', '.join(missing)}: give {' '.join(f'{key}=...' for key in missing)}")
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


KEYS = (  # that people change most
    *("model.path", "data.train", "data.eval", "run_dir", "train.steps", "train.token_budget"),
    *("train.accumulation", "optim.lr", "model.freeze", "resume"),
)


def explain(everything: bool) -> str:
    """What `--help` prints; with `--help all` every key."""
    groups = [f"  {name}={'|'.join(options)}" for name, options in choices().items()]
    keys = usage.lines_of(Config, only=() if everything else KEYS)
    return "\n".join([
        str(__doc__).strip(),
        "\nGroups, each a folder of configs/ (group.key=value sets one value of the chosen file, as rate.high=0.9):\n",
        *groups,
        f"\n{'All keys' if everything else 'The keys that people change most'}:\n",
        *keys,
        "\nThe rest: --help all; the file train/config.py; --cfg job prints what a command line composes to.",
    ])  # fmt: skip


def choices() -> dict[str, list[str]]:
    """The configuration groups and their options."""
    folder = Path(__file__).resolve().parents[1] / "configs"
    found = {path.name: sorted(each.stem for each in path.glob("*.yaml")) for path in sorted(folder.iterdir())}
    return {("+" if name == "experiment" else "") + name: options for name, options in found.items() if options}


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        cli.show(explain("all" in sys.argv[1:]))
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's own handler prints several lines
    sys.argv[1:] = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]  # the deepspeed launcher's
    # Hydra finds the plugin's schema under the same name as our configs/hydra/launcher, as it should.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/submitit_.*' is validated against ConfigStore")
    hide_library_bars()
    register()
    try:
        job()
    except UncompletedJobError as error:  # killed, so that it could not say why
        cli.fail(f"a job was lost, the others continue: {first_line(error)}", 1)
    except (HydraException, OmegaConfBaseException) as error:
        cli.fail(cli.config_error(error, sys.argv[1:], list(cli.leaves(OmegaConf.structured(Config)))))


if __name__ == "__main__":
    main()
