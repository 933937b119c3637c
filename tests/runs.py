"""Configurations as the command line composes them, and runs of them in this process."""

from __future__ import annotations

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from train.config import Config, check
from train.run import typed


def composed(*words: str) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_module("configs", version_base="1.3"):
        return typed(compose("config", overrides=list(words)))


def trained(*words: str) -> Config:
    """The run that `python train/run.py WORDS` would be, in this process."""
    from train.build import build_run
    from train.loop import fit

    config = composed(*words)
    check(config)
    if (run := build_run(config)) is not None:
        fit(run.parts, run.steps, config, run.first_step)
    return config
