"""What the media names in a row are relative to: a folder, or the members of an archive."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.types import RowError, Span


class Root(Protocol):
    def find(self, name: str, where: str) -> tuple[str, Span | None]:
        """A medium's path, and where its bytes lie if they are no file of their own. RowError, naming `where`."""


@dataclass(frozen=True)
class Folder:
    """Relative names start at `path`; absolute ones stay as they are; "~" is the user's home. With a `fence`, all must
    lie within."""

    path: str
    fence: bool = False

    def find(self, name: str, where: str) -> tuple[str, None]:
        name = os.path.expanduser(name)  # noqa: PTH111  Path's raises for an unknown user
        path = os.path.join(self.path, name)  # noqa: PTH118  a tenth of what Path costs, for every row
        if self.fence and not Path(path).resolve().is_relative_to(Path(self.path).resolve()):
            raise RowError(
                f"{where}: {name[:60]!r} leads out of data.media_root={self.path}; move the file into it, or set "
                "data.media_root=null"
            )
        return path, None


@dataclass(frozen=True)
class Members:
    """The files in an archive, by name."""

    archive: str
    spans: Mapping[str, Span]

    def find(self, name: str, where: str) -> tuple[str, Span]:
        if name not in self.spans:
            raise RowError(f"{where}: {self.archive} holds no {name[:60]!r}; correct the row or pack the file too")
        return f"{self.archive}/{name}", self.spans[name]
