"""What a checkpoint holds, by size and checksum, and of which run it is: `manifest.json`, written last."""

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


@dataclass(frozen=True)
class Manifest:
    step: int
    shape: dict[str, Any]  # train.checkpoint.run_identity
    files: dict[str, list[Any]]  # path within the checkpoint: [bytes, checksum]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size for size, _ in self.files.values())


def seal(engine: Accelerator, folder: Path, step: int, shape: dict[str, Any]) -> None:
    """Bring all files of a checkpoint to the disk and write its manifest. Ranks share the work."""
    mine = [[str(path.relative_to(folder)), *_sync(path)] for path in shared(engine, _files(folder))]
    files = {name: [size, found] for name, size, found in sorted(collected(mine))}
    if engine.is_main_process:
        body = asdict(Manifest(step, shape, files))
        (folder / NAME).write_text(json.dumps(body | {"checksum": _checksum_of(body)}, indent=1))
        _sync(folder / NAME)
        for each in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            sync_folder(each)
    engine.wait_for_everyone()


def read(checkpoint: Path) -> Manifest:
    """Raises ValueError where there is none, or it is not what was written."""
    try:
        body = json.loads((checkpoint / NAME).read_bytes())
        if body.pop("checksum") != _checksum_of(body):
            raise ValueError("checksum differs")
        return Manifest(**body)
    except FileNotFoundError:
        raise ValueError(f"{NAME} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{NAME} is damaged ({error})") from error


def faults(engine: Accelerator, checkpoint: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files, the same on all ranks, which share the reading."""
    sizes = [fault for name, (size, _) in manifest.files.items() if (fault := _size_fault(checkpoint / name, size))]
    if everywhere := collected(sizes):
        return sorted(set(everywhere))
    mine = [
        f"{name}: checksum differs"
        for name, (_, expected) in shared(engine, list(manifest.files.items()))
        if checksum(checkpoint / name) != expected
    ]
    return sorted(collected(mine))


def _size_fault(path: Path, size: int) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    found = path.stat().st_size
    return None if found == size else f"{path.name} has {found} bytes instead of {size}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> tuple[int, str]:
    """(bytes, checksum) of a file that is on the disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, checksum(path)


def sync_folder(folder: Path) -> None:
    """Brings the folder's own entries (files made, renamed, removed) to the disk."""
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
