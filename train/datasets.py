"""Reads the data of a configuration: usable samples, their predicted sizes, and the order of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.encoding.encoder import Encoder
from data.formats.rows import Format
from data.sources.base import Selection
from data.sources.collection import Collection, ReadOptions, collect
from data.sources.index import Index, build_index
from data.sources.mixture import Mixture
from data.sources.spec import parse_sources
from data.split import split
from data.types import Quarantined, Sample
from train.collectives import together
from train.config import Config, DataConfig
from train.faults.watchdog import WATCHDOG
from train.quarantine import check_audited


@dataclass(frozen=True)
class AuditedData:
    """The usable samples of a data set and their index. Rows stay on disk."""

    samples: Sequence[Sample]
    index: Index
    mixture: Mixture | None  # None: every sample once an epoch
    rows: int  # rows read, including those of the other set if both come from one file

    @property
    def lost(self) -> tuple[Quarantined, ...]:
        """The quarantined rows."""
        return self.index.quarantined

    @property
    def own_settings(self) -> int:
        """Number of usable rows that set the frames or pixels of their videos themselves."""
        return int(self.index.own_settings_S.sum())

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identifies the samples, their order and the weights of the mixture."""
        fingerprint: dict[str, Any] = {"samples": len(self.index), "rows": self.index.digest}
        if self.mixture is not None:
            fingerprint["mixture"] = [list(pair) for pair in zip(self.mixture.lengths, self.mixture.weights)]
        return fingerprint


def read_datasets(
    engine: Accelerator, data: DataConfig, encoder: Encoder, seed: int
) -> tuple[AuditedData, AuditedData | None]:
    """(training set, evaluation set or None): of two collections, or of one that is split by video."""
    collection, index = read_index(engine, "data.train", data.train, data, encoder)
    if data.eval_fraction is not None:
        train_set, eval_set = split(index, data.eval_fraction, seed)
        return usable(collection, train_set), usable(collection, eval_set)
    evaluated = None if data.eval is None else read_index(engine, "data.eval", data.eval, data, encoder)
    return usable(collection, index), None if evaluated is None else usable(*evaluated)


def read_index(
    engine: Accelerator | None, key: str, value: Any, data: DataConfig, encoder: Encoder
) -> tuple[Collection, Index]:
    """The rows that `key` names and their index, which all ranks build together; without an engine, this process."""
    main = engine is None or engine.is_main_process
    how = Format(data.format, data.columns)
    reading = ReadOptions(how, data.media_root, data.cache, data.workers, main, WATCHDOG.progress)
    collection = collect(parse_sources(key, value), reading)
    index = build_index(collection, encoder if data.audit else None, reading)
    if len(set(together(key, index.digest))) > 1:
        raise ValueError(f"{key}: ranks read different rows; a file or its media may have changed: start again")
    return collection, index


def usable(collection: Collection, index: Index) -> AuditedData:
    """The samples of the index. Raise ValueError for a source without usable samples."""
    samples = Selection(collection.samples, index.indices_S)
    return AuditedData(samples, index, collection.mixture(index.indices_S), len(collection.samples))


def check_datasets(config: Config, train_set: AuditedData, eval_set: AuditedData | None) -> None:
    """Print how many rows are quarantined or set their own frames. Raise ValueError if too many are quarantined."""
    file = Path(config.run_dir) / "quarantine.jsonl"
    for name, data in (("data.train", train_set), ("data.eval", eval_set)):
        if data is not None:
            check_audited(name, data.rows, data.lost, config.data.max_bad_fraction, file)
            if data.own_settings:
                print(
                    f"{name}: {data.own_settings} of {data.rows} rows set frames or pixels of their videos themselves"
                )
