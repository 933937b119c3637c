"""An evaluation in words and as JSON, and reading the JSON of another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from train.evaluation.answers import Answer, read
from train.evaluation.scores import Difference, Score
from train.reports.curve import Curve, table
from train.reports.equal_tokens import EqualTokens


def words(
    name: str,
    scores: Sequence[Score],
    changes: Sequence[Difference],
    base: str | None,
    areas: Sequence[float] = (),
) -> str:
    """The accuracy table, also by kind of question, one line per rate, and the recommended rate."""
    curves = [curve(name, scores)]
    for kind in sorted({kind for score in scores for kind in score.kinds}):
        curves.append(Curve(kind, {s.rate: s.kinds[kind].accuracy for s in scores if kind in s.kinds}))
    lines = [table(curves), *map(_line, scores), *(_change(change, base) for change in changes)]
    if areas:
        lines += [areas_line(areas)]
    return "\n".join([*lines, _advice(curves[0].recommended())])


def curve(name: str, scores: Sequence[Score]) -> Curve:
    return Curve(name, {s.rate: s.accuracy for s in scores}, {s.rate: (s.low, s.high) for s in scores})


def areas_line(areas: Sequence[float]) -> str:
    """How well the scores separate changed tokens: .5 is chance, 1 ranks all of them above the unchanged ones."""
    return (
        f"score: area {fmean(areas):.3f} under the ROC curve for tokens whose pixels changed "
        f"(mean of {len(areas)} videos; lowest {min(areas):.3f})"
    )


def _line(score: Score) -> str:
    interval = f"{100 * score.accuracy:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"
    kept = f"{100 * score.kept:.1f} % of tokens kept"
    return f"rate {score.rate:g}: {interval}, loss {score.loss:.4f}, {kept}, {score.answers} answers"


def _change(change: Difference, base: str | None) -> str:
    points = f"{100 * change.difference:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
    return f"rate {change.rate:g}: {points} against {base}, p = {change.p:.2g}, {change.answers} answers"


def _advice(rate: float | None) -> str:
    if rate is None:
        return "no rate to serve at can be named without rate 0: add it to rates"
    return f"serve at rate {rate:g}: the highest within one point of rate 0 and within its interval"


def write(
    header: dict[str, Any],
    scores: Sequence[Score],
    changes: Sequence[Difference],
    path: Path,
    *,
    baselines: Sequence[EqualTokens] = (),
    areas: Sequence[float] = (),
) -> None:
    """Write the scores as JSON. The answers are in the file of the same name with the suffix .jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    best = curve(header["name"], scores).recommended()
    result = {**header, "serve_at": best, "scores": [score.as_dict() for score in scores]}
    if changes:
        result["compared"] = [asdict(change) for change in changes]
    if areas:
        result["score_area"] = {"mean": fmean(areas), "lowest": min(areas), "videos": len(areas)}
    if baselines:
        result["baselines"] = [asdict(one) for one in baselines]
    path.write_text(json.dumps(result, indent=1) + "\n")


def answers_of(path: Path) -> list[Answer]:
    """The answers that belong to an evaluation's JSON file. Raise ValueError if a file is missing."""
    answers = path.with_suffix(".jsonl")
    for file in (path, answers):
        if not file.is_file():
            raise ValueError(
                f"{file} does not exist: give the out= of a finished evaluate.py, with its .jsonl in the same folder"
            )
    return read(answers)
