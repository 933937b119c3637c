"""The manifest of a checkpoint: its format version, and older and newer forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash
from accelerate import Accelerator

from train.checkpoint import manifest
from train.checkpoint.checkpoint import first_valid


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "step_00000007").mkdir()
    (tmp_path / "step_00000007" / "weights").write_bytes(b"x" * 9)
    manifest.seal(Accelerator(cpu=True), tmp_path / "step_00000007", 7, {"seed": 0})
    return tmp_path / "step_00000007"


def rewrite(checkpoint: Path, **changes: Any) -> None:
    """Write the manifest as another version would, with a valid checksum; None removes a key."""
    body = {**json.loads((checkpoint / manifest.NAME).read_text()), **changes}
    body = {key: value for key, value in body.items() if value is not None and key != "checksum"}
    checksum = xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (checkpoint / manifest.NAME).write_text(json.dumps(body | {"checksum": checksum}))


def test_a_manifest_states_its_format_version(checkpoint):
    assert json.loads((checkpoint / manifest.NAME).read_text())["format"] == manifest.FORMAT


def test_a_manifest_from_before_format_versions_is_read(checkpoint):
    saved = manifest.read(checkpoint)
    rewrite(checkpoint, format=None)
    older = manifest.read(checkpoint)
    assert (older.format, older.step, older.shape, older.files) == (0, saved.step, saved.shape, saved.files)
    assert first_valid(Accelerator(cpu=True), [checkpoint]) == (checkpoint, older)


@pytest.mark.parametrize("more", [{}, {"world_map": [1, 2]}])
def test_a_checkpoint_of_a_later_version_is_refused_and_not_called_damaged(checkpoint, more):
    rewrite(checkpoint, format=manifest.FORMAT + 1, **more)
    with pytest.raises(ValueError, match=r"step_00000007 .* format 2, .* up to 1: .* newer version") as refused:
        first_valid(Accelerator(cpu=True), [checkpoint])
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize("format", [True, "1", -1, 1.5, [1]])
def test_a_format_that_is_not_a_version_is_damage(checkpoint, format):
    rewrite(checkpoint, format=format)
    with pytest.raises(manifest.DamagedManifest, match="format"):
        manifest.read(checkpoint)
