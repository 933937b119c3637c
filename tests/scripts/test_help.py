"""`--help` of every command explains every key."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from scripts import prepare
from tests.runs import ROOT
from train import cli, usage
from train.config import Config
from train.run import KEYS, help_text, main

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem not in ("__init__", "prepare"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_key_of_a_script_is_explained(script, capsys):
    module = importlib.import_module(f"scripts.{script}")
    with pytest.raises(SystemExit) as stop:
        cli.parse(module.Options, ["--help"])
    page = capsys.readouterr().out
    assert stop.value.code == 0 and module.__doc__.splitlines()[0] in page
    blocks = page.partition("key=value:\n\n")[2].split("\n  ")
    keys = [block for block in blocks if "   (" in block.splitlines()[0]]
    assert keys and all("default" in key or "required" in key for key in keys)
    mute = [key for key in module.Options.__dataclass_fields__ if not explained(module.Options, key)]
    assert not mute


def explained(schema: type, key: str) -> str:
    return usage.explanation(schema, key, (*cli.EXPLAINED, usage.Policy, usage.FramePolicy))


def test_the_help_of_training_shows_the_groups_and_the_keys_that_matter():
    page = help_text(all_keys=False)
    assert "rate=beta|choice|constant" in page and "+experiment=demo|" in page
    assert all(f"  {key}=" in page for key in KEYS) and len(KEYS) == 10


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--help", "all"]])
def test_help_is_printed_in_place_of_a_run(monkeypatch, capsys, words):
    monkeypatch.setattr("sys.argv", ["train/run.py", *words])
    main()
    assert capsys.readouterr().out.strip() == help_text(all_keys="all" in words).strip()


def test_the_help_of_prepare_is_that_of_training(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prepare.py", "--help"])
    prepare.main()
    assert help_text(all_keys=False) in capsys.readouterr().out


def test_all_keys_of_training_are_listed_on_request():
    page = help_text(all_keys=True)
    listed = [line for line in page.splitlines() if "   (" in line]
    assert len(listed) > 60 and len(listed) == len(list(usage.describe_keys(Config)))
    assert "  train.accumulation=1   (int; at least 1; default 1)" in page


def test_no_key_of_training_is_listed_without_a_word():
    listed = list(usage.describe_keys(Config))
    mute = [each.split("=")[0].strip() for each in listed if "\n" not in each]
    assert mute == []


@pytest.mark.slow
def test_a_reader_that_has_read_enough_of_the_help_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "train/run.py", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
