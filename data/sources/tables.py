"""Parquet files and Hugging Face datasets, as memory-mapped Arrow tables.

Parquet files and streams, which have no random access to rows, are copied once to an Arrow file in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.formats.roots import Folder
from data.sample_limits import first_line

BATCH = 256  # rows copied at a time


@dataclass(frozen=True)
class ParquetFile:
    """A .parquet file, copied to the Arrow file at `path`."""

    file: Path
    path: Path
    folder: Folder
    identity: str

    def make(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.file) as file:
                _write(path, (pa.Table.from_batches([batch]) for batch in file.iter_batches(BATCH)))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{self.file}: unreadable Parquet file ({first_line(error):.200}); write the file again"
            ) from None

    def rows(self) -> TableRows:
        return _mapped(str(self.file), self.path, self.folder, self.identity)


@dataclass(frozen=True)
class HubStream:
    """A Hugging Face dataset that is streamed once and copied to the Arrow file at `path`."""

    name: str
    subset: str | None
    split: str
    limit: int | None  # largest number of rows
    path: Path
    folder: Folder
    identity: str

    def make(self, path: Path) -> None:
        stream = _loaded(self.name, self.subset, self.split, streaming=True)
        if self.limit is not None:
            stream = stream.take(self.limit)
        _write(path, stream.with_format("arrow").iter(BATCH))

    def rows(self) -> TableRows:
        return _mapped(self.name, self.path, self.folder, self.identity)


@dataclass(frozen=True)
class HubDataset:
    """A Hugging Face dataset by id or folder, in the library's own cache."""

    name: str
    subset: str | None
    split: str
    folder: Folder

    def rows(self) -> TableRows:
        table = _loaded(self.name, self.subset, self.split, streaming=False)
        return TableRows(self.name, table.with_format("arrow"), self.folder, f"{self.name} {table._fingerprint}")


@dataclass(frozen=True)
class TableRows:
    """Rows of an Arrow table. Media columns stay as they are: bytes or names."""

    name: str
    table: Any  # datasets.Dataset
    folder: Folder
    identity: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        (row,) = self.table[index].to_pylist()
        return {key: value for key, value in row.items() if value is not None}

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def root(self, index: int) -> Folder:
        return self.folder


def _mapped(name: str, path: Path, folder: Folder, identity: str) -> TableRows:
    from datasets import Dataset  # slow to import, and used only here

    try:
        table = Dataset.from_file(str(path)).with_format("arrow")
    except (ValueError, NotImplementedError) as error:  # a column type that the library does not support
        raise ValueError(f"{name}: unsupported column ({first_line(error)}); remove it or write it as text") from None
    return TableRows(name, table, folder, identity)


def _write(path: Path, tables: Iterator[Any]) -> None:
    import pyarrow as pa

    first = next(tables, None)
    if first is None:
        raise ValueError("contains no rows")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table.cast(first.schema))


def _loaded(name: str, subset: str | None, split: str, *, streaming: bool) -> Any:
    """Load the dataset. Any failure becomes a one-line ValueError."""
    from datasets import Dataset, load_dataset, load_from_disk

    try:
        if (Path(name) / "state.json").is_file():  # written by save_to_disk
            saved = load_from_disk(name)
            assert isinstance(saved, Dataset)
            return saved.to_iterable_dataset() if streaming else saved
        return load_dataset(name, subset, split=split, streaming=streaming)
    except Exception as error:  # from several libraries, including network errors
        raise ValueError(f"{name} cannot be read as a dataset ({first_line(error):.200}); see data.train") from error
