"""Build the index of a run's data in advance, for example on a node without a GPU. The run then only reads it.

python scripts/prepare.py +experiment=qwen_evs_uptrain model.path=DIR_OR_HUB_ID data.train=DATA [data.workers=16 ...]

The arguments are those of train/run.py. Several processes, on any machines that see the same data.cache, share the
work. If one is stopped, the next one continues.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train import cli
from train.checks import check
from train.config import Config
from train.run import help_text, register, typed


def prepare(config: Config) -> None:
    """Build the index of all data files in the configuration, and print how many rows can be used."""
    from train.build import build_encoder  # slow imports, not needed to report a wrong argument
    from train.datasets import read_index, usable

    encoder = build_encoder(config.model, config.data)
    for key, files in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        if files is None:
            continue
        collection, index = read_index(None, key, files, config.data, encoder)
        usable(collection, index)
        print(f"{key}: {len(index)} of {len(collection.samples)} rows can be used")
        for lost in index.quarantined[:10]:
            print(f"  quarantined: {lost.id}: {lost.reason}")


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        cli.print_help(f"{__doc__}\n{help_text('all' in sys.argv[1:])}")
        return
    register()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            raw = compose("config", overrides=sys.argv[1:])
    except (HydraException, OmegaConfBaseException) as error:
        cli.fail(cli.config_error(error, sys.argv[1:], list(cli.leaves(OmegaConf.structured(Config)))))
    with cli.one_line_errors():
        config = typed(raw)
        check(config)
        prepare(config)


if __name__ == "__main__":
    main()
