"""Uptrain a video language model under random pruning rates.

python train/run.py +experiment=qwen_evs_uptrain model.path=DIR_OR_HUB_ID data.train=FILE [key=value ...]
torchrun --nproc-per-node 8 train/run.py +experiment=qwen_evs_uptrain ...      one process per GPU
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
    paths = (sys.path[0], os.environ.get("PYTHONPATH"))  # for jobs that a launcher starts in another folder
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

from train.faults import signals, watchdog

if __name__ == "__main__":  # before the slow imports, which may be interrupted or hang on a file system
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
from train.error_lines import one_line_failures
from train.faults.first_line import first_line


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="config")
def job(raw: DictConfig) -> None:
    """Train one composed configuration. In a sweep, a failing job does not end the others."""
    from train import distributed as engine
    from train import sweep  # slow imports come after composing, so that a misspelt key is reported at once

    engine.join()
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        folder = Path(raw.run_dir) / str(hydra_config.job.num)
        sweep.attempt(lambda restarted: train(raw, folder, restarted), folder, list(hydra_config.overrides.task))
    else:
        train(raw)


def train(raw: DictConfig, folder: Path | None = None, restarted: bool = False) -> None:
    """Build a run and train it. `folder` is the job's in a sweep; a `restarted` job continues from its checkpoint."""
    from train.build import build_run
    from train.loop import fit

    with cli.one_line_errors(), one_line_failures():
        if folder is not None:
            raw.run_dir = str(folder)
            raw.resume = raw.resume or ("auto" if restarted else None)
        config = typed(raw)
        check(config)
        signals.exit_at_once(config.train.signals)
        with watchdog.WATCHDOG.watching(Path(config.run_dir) / "stall", 60 * config.engine.timeout_minutes):
            run = build_run(config)
            if run is None:
                return
            status = fit(run)
            watchdog.WATCHDOG.enter("end")
            run.recorder.close()
            if not status and run.engine.is_main_process:
                print_summary(Path(config.run_dir), run.forecast_gib, run.own_settings)
    if status:
        raise SystemExit(status)


def print_summary(run_dir: Path, forecast_gib: float | None, own_settings: dict[str, int]) -> None:
    """Print what the run did and the command that exports it, and write it to `summary.json`."""
    from train.reports import summary

    result = summary.summarize(run_dir, forecast_gib, own_settings)
    summary.write(result, run_dir)
    print(summary.text(result, run_dir))


def typed(raw: DictConfig) -> Config:
    """The composed configuration as dataclasses. Raise ValueError for missing or unknown keys and wrong types."""
    if missing := sorted(OmegaConf.missing_keys(raw)):
        raise ValueError(f"missing {', '.join(missing)}: add {' '.join(f'{key}=...' for key in missing)}")
    schema = OmegaConf.structured(Config)
    try:  # Hydra's own merge lets `+key=value` add keys that the schema does not have
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(schema, cli.expand_home(OmegaConf.to_container(raw)))))
    except OmegaConfBaseException as error:
        raise ValueError(cli.config_error(error, sys.argv[1:], list(cli.leaves(schema)))) from error


def register() -> None:
    """Register the schema and the resolver `experiment`, which the configuration files use."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("experiment", experiment, replace=True)


def experiment() -> str:
    """The name of the chosen experiment, or `uptrain` if none is chosen."""
    choice = HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    return choice or "uptrain"


KEYS = (  # the keys that people change most
    *("model.path", "data.train", "data.eval", "run_dir", "train.steps", "train.token_budget"),
    *("train.accumulation", "optim.lr", "model.freeze", "resume"),
)


def help_text(all_keys: bool) -> str:
    """The text of `--help`, or with `all_keys` that of `--help all`."""
    groups = [f"  {name}={'|'.join(options)}" for name, options in choices().items()]
    keys = usage.describe_keys(Config, only=() if all_keys else KEYS)
    return "\n".join([
        str(__doc__).strip(),
        "\nGroups, each a folder of configs/ (group.key=value sets one value of the chosen file, as rate.high=0.9):\n",
        *groups,
        f"\n{'All keys' if all_keys else 'The keys that people change most'}:\n",
        *keys,
        "\nThe rest: --help all; the file train/config.py; --cfg job prints what a command line composes to.",
    ])  # fmt: skip


def choices() -> dict[str, list[str]]:
    """The options of every configuration group."""
    folder = Path(__file__).resolve().parents[1] / "configs"
    groups = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in sorted(folder.iterdir())}
    return {("+" if name == "experiment" else "") + name: options for name, options in groups.items() if options}


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        cli.print_help(help_text("all" in sys.argv[1:]))
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's handler would print several lines for an error
    # The deepspeed launcher adds --local_rank.
    sys.argv[1:] = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
    # Expected: configs/hydra/launcher extends the plugin's schema under the same name.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/submitit_.*' is validated against ConfigStore")
    hide_library_bars()
    register()
    try:
        job()
    except UncompletedJobError as error:  # the job was killed and has not reported an error
        cli.fail(f"a job was lost, the others continue: {first_line(error)}", 1)
    except (HydraException, OmegaConfBaseException) as error:
        cli.fail(cli.config_error(error, sys.argv[1:], list(cli.leaves(OmegaConf.structured(Config)))))


if __name__ == "__main__":
    main()
