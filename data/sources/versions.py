"""Names of kept files: of what they are, and of which version of it, so that earlier versions can be removed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path

import xxhash

GRACE = 86_400.0  # seconds for which a file of an earlier version is left to starts that may be reading it


def named(*made_of: object) -> str:
    """The name of what follows from all this."""
    return xxhash.xxh3_128_hexdigest(repr(made_of).encode())


def versioned(of: object, version: object) -> str:
    """The name of a version of something."""
    return f"{named(of)[:16]}-{named(version)}"


def version_after(name: str, changes: object) -> str:
    """The name of what has become of a version by these changes."""
    of, _, version = name.partition("-")
    return f"{of}-{named(version, changes)}"


def remove_earlier(kept: Collection[Path]) -> None:
    """Remove other versions of what is kept, and what dead processes left of them, once nobody can be about to read
    them: a start reads its files within a day of finding or making them."""
    names, now = {path.name for path in kept}, time.time()
    for folder in {path.parent for path in kept}:
        for path in _others(folder, names):
            try:
                if now - path.stat().st_mtime > GRACE:
                    path.unlink()
            except OSError:  # another start was faster, or the folder is read-only
                continue


def _others(folder: Path, names: Collection[str]) -> Iterable[Path]:
    things = {name.partition("-")[0] for name in names}
    return [path for path in folder.iterdir() if path.name.partition("-")[0] in things and path.name not in names]
