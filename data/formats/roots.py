"""The base of media names in a row: a folder, or the members of an archive."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.types import RowError, Span


class Root(Protocol):
    """Resolves media names."""

    def entries(self, folder: str, where: str) -> list[str] | None:
        """Names of the files in a folder; None if there is no such folder. Raises RowError as `find` does."""

    def find(self, name: str, where: str) -> tuple[str, Span | None]:
        """(path, byte range in an archive or None). Raises RowError, naming `where`, if the name is not allowed."""


@dataclass(frozen=True)
class Folder:
    """Resolves relative names from `path`; absolute names are unchanged, and "~" is the user's home.

    If `restricted`, names outside `path` are refused.
    """

    path: str
    restricted: bool = False

    def entries(self, folder: str, where: str) -> list[str] | None:
        path, _ = self.find(folder, where)
        return os.listdir(path) if os.path.isdir(path) else None  # noqa: PTH112, PTH208  Path takes ten times as long

    def find(self, name: str, where: str) -> tuple[str, None]:
        name = os.path.expanduser(name)  # noqa: PTH111  Path.expanduser raises for an unknown user
        path = os.path.join(self.path, name)  # noqa: PTH118  Path takes ten times as long
        if self.restricted and not Path(path).resolve().is_relative_to(Path(self.path).resolve()):
            raise RowError(
                f"{where}: {name[:60]!r} is outside data.media_root={self.path}; move the file into it, or set "
                "data.media_root=null"
            )
        return path, None


@dataclass(frozen=True)
class Members:
    """Resolves the members of an archive by name."""

    archive: str
    spans: Mapping[str, Span]

    def entries(self, folder: str, where: str) -> list[str] | None:
        prefix = f"{folder.rstrip('/')}/"
        inside = [name.removeprefix(prefix) for name in self.spans if name.startswith(prefix)]
        return [name for name in inside if "/" not in name] or None

    def find(self, name: str, where: str) -> tuple[str, Span]:
        if name not in self.spans:
            raise RowError(f"{where}: {self.archive} has no member {name[:60]!r}; correct the row or pack the file too")
        return f"{self.archive}/{name}", self.spans[name]
