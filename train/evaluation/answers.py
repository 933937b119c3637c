"""Answers on disk, one JSON line a question and rate, so that a run that was killed asks nothing twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from train.atomic_write import write_atomically
from train.collectives import on_main


@dataclass(frozen=True)
class Answer:
    """One question at one rate."""

    question: str  # train.evaluation.questions.Question.key
    rate: float
    sample: str  # its id in the data
    score: float  # 0 to 1
    metric: str  # "choice", "greedy" (see train.evaluation.evaluation) or one of data.answer_metrics
    text: str  # what was answered
    loss: float  # natural, summed over the reference's tokens
    targets: int
    kept: int  # tokens of the sample that the language model read
    tokens: int

    @property
    def place(self) -> tuple[str, float]:
        return self.question, self.rate


@dataclass(frozen=True)
class Answers:
    """A file that answers are appended to; ranks but the first keep one of their own beside it until the end.

    `setting` stands in its first line: answers of another model, or of other frames, are never taken for these.
    """

    engine: Accelerator
    path: Path
    setting: dict[str, Any]

    @property
    def own(self) -> Path:
        rank = self.engine.process_index
        return self.path if rank == 0 else self.path.with_name(f"{self.path.name}.rank{rank}")

    def begin(self) -> list[Answer]:
        """The answers that are there, on all ranks. ValueError where they are another setting's."""
        found = on_main(self.engine, self._gather)
        return broadcast_object_list([found])[0]

    def append(self, answers: Iterable[Answer]) -> None:
        """On the disk when it returns, in one write: a kill leaves whole lines, and at most one that is not."""
        lines = "".join(json.dumps(asdict(answer)) + "\n" for answer in answers)
        with self.own.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, answers: list[Answer]) -> None:
        """Put all ranks' answers into the one file, in the order given."""
        self.engine.wait_for_everyone()
        on_main(self.engine, lambda: self._replace(answers))

    def _gather(self) -> list[Answer]:
        found: dict[tuple[str, float], Answer] = {}
        for path in (self.path, *self._others()):
            found |= {answer.place: answer for answer in self._read(path)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._replace(list(found.values()))
        return list(found.values())

    def _read(self, path: Path) -> list[Answer]:
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line break was cut short
        rows = [json.loads(line) for line in lines]
        if rows and "setting" in rows[0]:
            self._check(path, rows.pop(0)["setting"])
        return [Answer(**row) for row in rows]

    def _check(self, path: Path, setting: dict[str, Any]) -> None:
        if differing := sorted(key for key in {*setting, *self.setting} if setting.get(key) != self.setting.get(key)):
            changes = ", ".join(f"{key} was {setting.get(key)}, is {self.setting.get(key)}" for key in differing)
            raise ValueError(f"{path} holds answers of another evaluation ({changes}): give another out=, or remove it")

    def _replace(self, answers: list[Answer]) -> None:
        rows = [{"setting": self.setting}, *map(asdict, answers)]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        for other in self._others():
            other.unlink()

    def _others(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.name}.rank*"))


def read(path: Path) -> list[Answer]:
    """The answers of a finished file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Answer(**row) for row in rows if "setting" not in row]
