"""What README.md shows people to type exists."""

from __future__ import annotations

import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.runs import composed
from train.cli import leaves
from train.config import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.strip() for line in README.replace("\\\n", " ").splitlines() if line.startswith("    ")]


def words(command: str) -> list[str]:
    return shlex.split(command.split("#")[0].replace("[push=user/name]", "push=user/name").replace("...", ""))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)", README))))
def test_every_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "scripts/" in c])
def test_every_script_takes_the_arguments_shown(command):
    script = re.search(r"scripts/(\w+)\.py", command)
    assert script
    options = importlib.import_module(f"scripts.{script[1]}").Options
    shown = {word.split("=")[0] for word in words(command) if "=" in word}
    assert shown and shown <= {field.name for field in fields(options)}


@pytest.mark.parametrize("experiment", sorted(set(re.findall(r"\+experiment=(\w+)", README))))
def test_every_experiment_shown_composes(experiment, tmp_path):
    config = composed(f"+experiment={experiment}", "data.train=x.jsonl", "train.steps=1", "model.path=x")
    assert config.run_dir


def test_every_override_shown_is_a_key():
    block = next(part for part in README.split("\n\n") if "rate=uniform|" in part)
    shown = {word.split("=")[0] for line in block.splitlines() for word in line.split() if "=" in word}
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} | {"+experiment"}
    plugs = {
        f"{group}.{key}"
        for group in ("rate", "method")
        for path in (ROOT / "configs" / group).iterdir()
        for key in OmegaConf.load(path)
    }
    assert shown - groups - plugs <= set(leaves(OmegaConf.structured(Config)))


def test_every_file_linked_exists():
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link
