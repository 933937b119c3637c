"""The command line is an interface: changed names, types, ranges and defaults of keys show in command_line.txt.

`python -m tests.train.test_command_line` writes the file again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from train import usage
from train.cli import leaves
from train.config import Config
from train.run import choices, register

FILE = Path(__file__).with_name("command_line.txt")


def command_line() -> Iterator[str]:
    """Every key with its type, range and default, then what every choice of a group sets."""
    yield from (key.splitlines()[0].strip() for key in usage.describe_keys(Config))
    register()
    with initialize_config_module("configs", version_base="1.3"):
        default = values()
        yield from ("", "defaults of the groups", *sorted(default - values("~rate", "~method", "~engine")))
        for group, options in choices().items():
            for option in options if group != "hydra" else ():
                yield from ("", f"{group}={option}", *sorted(values(f"{group}={option}") - default))


def values(*words: str) -> set[str]:
    """`key=value` of every key as a command line composes it."""
    config = compose("config", overrides=list(words))
    missing = OmegaConf.missing_keys(config)
    return {f"{key}={OmegaConf.select(config, key)!r}" for key in leaves(config) if key not in missing}


def test_the_command_line_is_the_one_written_down():
    assert "\n".join(command_line()) + "\n" == FILE.read_text()


if __name__ == "__main__":
    FILE.write_text("\n".join(command_line()) + "\n")
