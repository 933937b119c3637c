"""The manifest of a checkpoint: sizes and checksums of its files and the run's shape, written last."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash
from accelerate import Accelerator

from train.collectives import collected, shared

NAME = "manifest.json"
FORMAT = 1  # version of the format, which manifests before version 1 do not state


class DamagedManifest(ValueError):
    """A manifest that is missing or unreadable, as after a crash."""


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    step: int
    shape: dict[str, Any]  # see train.checkpoint.run_identity
    files: dict[str, list[Any]]  # path within the checkpoint: [bytes, checksum]
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Size of the checkpoint in bytes."""
        return sum(size for size, _ in self.files.values())


def seal(engine: Accelerator, folder: Path, step: int, shape: dict[str, Any]) -> None:
    """Flush all files of a checkpoint to disk and write its manifest. Ranks share the work; every rank must call it."""
    local = [[str(path.relative_to(folder)), *_sync(path)] for path in shared(engine, _files(folder))]
    files = {name: [size, checksum] for name, size, checksum in sorted(collected(local))}
    if engine.is_main_process:
        body = asdict(Manifest(step, shape, files))
        (folder / NAME).write_text(json.dumps(body | {"checksum": _checksum_of(body)}, indent=1))
        _sync(folder / NAME)
        for directory in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            sync_folder(directory)
    engine.wait_for_everyone()


def read(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint, also of an older format.

    Raise DamagedManifest if it is missing or damaged, and ValueError if a later version wrote it.
    """
    try:
        body = json.loads((checkpoint / NAME).read_bytes())
        if body.pop("checksum") != _checksum_of(body):
            raise ValueError("checksum differs")
        version = body.setdefault("format", 0)
        if type(version) is not int or version < 0:
            raise ValueError(f"its format is {version!r}")
        if version <= FORMAT:
            return Manifest(**body)
    except FileNotFoundError:
        raise DamagedManifest(f"{NAME} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DamagedManifest(f"{NAME} is damaged ({error})") from error
    raise ValueError(
        f"{checkpoint} has a manifest of format {version}, and this version reads formats up to {FORMAT}: resume it "
        "with the newer version that wrote it, or give another run_dir"
    )


def faults(engine: Accelerator, checkpoint: Path, manifest: Manifest) -> list[str]:
    """Descriptions of missing or changed files, equal on all ranks. Ranks share the work; every rank must call it."""
    sizes = [fault for name, (size, _) in manifest.files.items() if (fault := _size_fault(checkpoint / name, size))]
    if all_sizes := collected(sizes):
        return sorted(set(all_sizes))
    local = [
        f"{name}: checksum differs"
        for name, (_, expected) in shared(engine, list(manifest.files.items()))
        if checksum(checkpoint / name) != expected
    ]
    return sorted(collected(local))


def _size_fault(path: Path, size: int) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    actual = path.stat().st_size
    return None if actual == size else f"{path.name} has {actual} bytes instead of {size}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> tuple[int, str]:
    """Flush a file to disk. Returns (size in bytes, checksum)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, checksum(path)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder (files created, renamed or removed) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _checksum_of(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()
