"""Answers on disk, one JSON line per question and rate, so that a resumed evaluation repeats none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from train.atomic_write import write_atomically
from train.collectives import on_main


@dataclass(frozen=True)
class Answer:
    """The answer to one question at one rate."""

    question: str  # train.evaluation.questions.Question.key
    rate: float
    sample: str  # id of the sample
    score: float  # 0 to 1
    metric: str  # "choice", "greedy" (see train.evaluation.evaluation) or one of data.answer_metrics
    text: str  # the answer
    loss: float  # cross-entropy in nats, summed over the tokens of the reference
    targets: int  # tokens of the reference
    kept: int  # tokens of the sample after pruning
    tokens: int  # before pruning
    areas: list[float] = field(default_factory=list)  # evs.score_area of the sample's videos

    @property
    def key(self) -> tuple[str, float]:
        """(question, rate), which identifies an answer."""
        return self.question, self.rate


@dataclass(frozen=True)
class Answers:
    """A file that answers are appended to. Until the end, every rank but the first writes to a file of its own.

    The first line holds `setting`, so that answers of another model or of other frames are not reused.
    """

    engine: Accelerator
    path: Path
    setting: dict[str, Any]

    @property
    def own(self) -> Path:
        """The file of this rank."""
        rank = self.engine.process_index
        return self.path if rank == 0 else self.path.with_name(f"{self.path.name}.rank{rank}")

    def begin(self) -> list[Answer]:
        """The existing answers, on all ranks. Raise ValueError if they have another setting."""
        answers = on_main(self.engine, self._gather)
        return broadcast_object_list([answers])[0]

    def append(self, answers: Iterable[Answer]) -> None:
        """Append answers in one write and flush them to disk, so that a kill leaves at most one incomplete line."""
        lines = "".join(json.dumps(asdict(answer)) + "\n" for answer in answers)
        with self.own.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, answers: list[Answer]) -> None:
        """Write all ranks' `answers` to one file, in this order. Every rank must call it."""
        self.engine.wait_for_everyone()
        on_main(self.engine, lambda: self._replace(answers))

    def _gather(self) -> list[Answer]:
        answers: dict[tuple[str, float], Answer] = {}
        for path in (self.path, *self._rank_files()):
            answers |= {answer.key: answer for answer in self._read(path)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._replace(list(answers.values()))
        return list(answers.values())

    def _read(self, path: Path) -> list[Answer]:
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the text after the last line break is incomplete
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
        for path in self._rank_files():
            path.unlink()

    def _rank_files(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.name}.rank*"))


def read(path: Path) -> list[Answer]:
    """The answers of a finished file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Answer(**row) for row in rows if "setting" not in row]
