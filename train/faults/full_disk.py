"""Errors of writing a file, in one line that names the file and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota exceeded"}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of writing `path`, a file or a folder, into a ValueError that names it and the remedy."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{write_error(error, path)}; then start again with resume=auto") from error


def write_error(error: OSError, path: Path) -> str:
    """The reason and the remedy of a failed write of `path`."""
    if error.errno not in FULL:
        return f"{path} cannot be written ({error.strerror or error}): check the folder and its permissions"
    if inodes_used_up(path):
        return f"no inodes left: {path} cannot be written: remove files from this file system"
    return f"{FULL[error.errno]}: {path} cannot be written: free space on this file system"


def inodes_used_up(path: Path) -> bool:
    """True if the file system of `path` has free bytes and no free inode."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = os.statvfs(folder)
    return bool(free.f_files and not free.f_favail and free.f_bavail)
