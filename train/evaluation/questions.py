"""What an evaluation asks: one question for every learned turn of its samples."""

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
    key: str  # of what is asked and how it is graded: the same in every run, wherever data and media lie
    sample: str
    turn: int  # of the sample's answers, from 0
    kind: str
    metric: str | None  # of free answers
    accepted: tuple[str, ...]
    video: str  # questions on one are not independent


@dataclass(frozen=True)
class Named(Sequence[Sample]):
    """Samples by ids that no two of them share."""

    samples: Sequence[Sample]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return replace(self.samples[place], id=self.ids[place])


def questions(samples: Sequence[Sample]) -> tuple[Named, dict[str, list[Question]]]:
    """The samples, and their questions by the ids that they are given."""
    ids, keys = Counter[str](), Counter[str]()
    asked: dict[str, list[Question]] = {}
    for sample in (samples[place] for place in range(len(samples))):
        name = _numbered(sample.id, ids)
        asked[name] = [
            Question(
                key=_numbered(_key(sample, turn), keys),
                sample=name,
                turn=number,
                kind=sample.kind,
                metric=sample.metric,
                accepted=("".join(map(str, sample.turns[turn].parts)), *sample.answers),
                video=" ".join(str(training_part(part)) for part in sample.media) or name,
            )
            for number, turn in enumerate(i for i, each in enumerate(sample.turns) if each.is_target)
        ]
    return Named(samples, tuple(asked)), asked


def _key(sample: Sample, turn: int) -> str:
    turns = [(each.role, [training_part(part) for part in each.parts]) for each in sample.turns[: turn + 1]]
    return xxhash.xxh3_64(repr((turns, sample.metric, sample.answers)).encode()).hexdigest()


def _numbered(name: str, seen: Counter[str]) -> str:
    """The name, with a number from its second time on."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"
