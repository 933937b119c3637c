"""The questions of an evaluation: one for every labelled assistant turn of its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from data.sources.chunks import training_part
from data.types import Sample


@dataclass(frozen=True)
class Question:
    """A question and how its answer is graded."""

    key: str  # hash of the question and its grading, independent of the paths of data and media
    sample: str
    turn: int  # index among the sample's answers
    kind: str
    metric: str | None  # that grades a generated answer
    accepted: tuple[str, ...]
    video: str  # questions on the same video are not independent


@dataclass(frozen=True)
class Named(Sequence[Sample]):
    """Samples with unique ids."""

    samples: Sequence[Sample]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return replace(self.samples[index], id=self.ids[index])


def questions(samples: Sequence[Sample]) -> tuple[Named, dict[str, list[Question]]]:
    """(the samples with unique ids, their questions by id)."""
    ids, keys = Counter[str](), Counter[str]()
    by_id: dict[str, list[Question]] = {}
    for sample in (samples[i] for i in range(len(samples))):
        name = _numbered(sample.id, ids)
        by_id[name] = [
            Question(
                key=_numbered(_key(sample, turn), keys),
                sample=name,
                turn=number,
                kind=sample.kind,
                metric=sample.metric,
                accepted=("".join(map(str, sample.turns[turn].parts)), *sample.answers),
                video=" ".join(str(training_part(part)) for part in sample.media) or name,
            )
            for number, turn in enumerate(i for i, candidate in enumerate(sample.turns) if candidate.is_target)
        ]
    return Named(samples, tuple(by_id)), by_id


def _key(sample: Sample, turn: int) -> str:
    turns = [(past.role, [training_part(part) for part in past.parts]) for past in sample.turns[: turn + 1]]
    return xxhash.xxh3_64(repr((turns, sample.metric, sample.answers)).encode()).hexdigest()


def _numbered(name: str, seen: Counter[str]) -> str:
    """The name, with a number appended from its second occurrence on."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"
