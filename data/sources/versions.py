"""Names of cache files. A name is a hash of the content's identity and a hash of its version, so that superseded
versions can be removed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path

import xxhash

GRACE = 86_400.0  # seconds before a superseded file is removed, because another start may be reading it


def hash_of(*ingredients: object) -> str:
    """Hash of the representations of all ingredients, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(repr(ingredients).encode())


def versioned(identity: object, version: object) -> str:
    """The file name, without suffix, of one version of a cache entry."""
    return f"{hash_of(identity)[:16]}-{hash_of(version)}"


def version_after(name: str, changes: object) -> str:
    """The name of the version that follows `name` after these changes."""
    identity, _, version = name.partition("-")
    return f"{identity}-{hash_of(version, changes)}"


def remove_superseded(kept: Collection[Path]) -> None:
    """Remove other versions of the files `kept`, and partial files of dead processes, if they are older than GRACE.

    A start reads its files within a day of finding or writing them.
    """
    names, now = {path.name for path in kept}, time.time()
    for folder in {path.parent for path in kept}:
        for path in _others(folder, names):
            try:
                if now - path.stat().st_mtime > GRACE:
                    path.unlink()
            except OSError:  # removed by another start, or the folder is read-only
                continue


def _others(folder: Path, names: Collection[str]) -> Iterable[Path]:
    identities = {name.partition("-")[0] for name in names}
    return [path for path in folder.iterdir() if path.name.partition("-")[0] in identities and path.name not in names]
