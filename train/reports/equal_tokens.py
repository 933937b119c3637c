"""Pruning against its baselines: the same checkpoint unpruned, on videos with as few tokens as pruning keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from train.reports.markdown import markdown_table

TYPICAL = 0.75  # pruning rate of the sentence, if the baselines reach it
NAMES = {"frames": "fewer frames", "pixels": "smaller frames", "even": "fewer and smaller frames"}


@dataclass(frozen=True)
class EqualTokens:
    """One baseline at the tokens of one pruning rate. Accuracies are over the questions whose videos it can reduce."""

    baseline: str  # of NAMES
    rate: float
    kept: float  # fraction of the video tokens that the baseline leaves, of videos that it can reduce
    pruned_kept: float  # fraction that pruning leaves, of all videos
    questions: int  # about videos, whether they can be reduced or not
    reason: str = ""  # why some videos cannot be reduced
    answers: int = 0  # 0: no video can be reduced so far
    accuracy: float = 0.0
    low: float = 0.0
    high: float = 0.0
    difference: float = 0.0  # accuracy of pruning minus that of the baseline, on the same questions
    difference_low: float = 0.0
    difference_high: float = 0.0
    p: float = 1.0  # probability of a difference this large if both are equally good

    @property
    def counts(self) -> bool:
        """True if the interval of the difference excludes 0."""
        return self.difference_low > 0 or self.difference_high < 0


def equal_tokens_rows(results: Sequence[EqualTokens]) -> list[list[str]]:
    """The header and one row per rate; accuracies in percent, differences (pruning minus baseline) in points."""
    kinds = [kind for kind in NAMES if any(one.baseline == kind for one in results)]
    cells = {(one.rate, one.baseline): _cell(one) for one in results}
    rows = [
        [f"{rate:g}", f"{100 * _pruned_kept(results, rate):.1f} %", *(cells.get((rate, kind), "") for kind in kinds)]
        for rate in sorted({one.rate for one in results})
    ]
    return [["rate", "video tokens kept", *(NAMES[kind] for kind in kinds)], *rows]


def equal_tokens_text(results: Sequence[EqualTokens]) -> list[str]:
    """The sentence and the table in Markdown; nothing without results."""
    header, *rows = equal_tokens_rows(results)
    return [text for text in (equal_tokens_sentence(results), markdown_table(header, rows)) if text] if results else []


def equal_tokens_sentence(results: Sequence[EqualTokens]) -> str:
    """One sentence on the rate that most baselines reach, of those the nearest to TYPICAL; empty if there is none."""
    answered = [one for one in results if one.answers]
    reached = [one for one in answered if one.answers == one.questions] or answered
    if not reached:
        return ""
    baselines = Counter(one.rate for one in reached)
    rate = min(baselines, key=lambda rate: (-baselines[rate], abs(rate - TYPICAL)))
    there = [one for one in reached if one.rate == rate]
    return (
        f"At {100 * _pruned_kept(there, rate):.0f} % of the video tokens, pruning is {_listed(map(_verdict, there))}."
    )


def _pruned_kept(results: Sequence[EqualTokens], rate: float) -> float:
    return fmean(one.pruned_kept for one in results if one.rate == rate)


def _cell(one: EqualTokens) -> str:
    if not one.answers:
        return f"not reached: {one.reason}"
    points = f"{100 * one.difference:+.1f} ({100 * one.difference_low:+.1f} to {100 * one.difference_high:+.1f})"
    part = f"; {one.answers} of {one.questions} questions, the others {one.reason}" if one.reason else ""
    return f"{100 * one.accuracy:.1f} at {100 * one.kept:.1f} %, pruning {points}{part}"


def _verdict(one: EqualTokens) -> str:
    low, high = sorted(abs(100 * end) for end in (one.difference_low, one.difference_high))
    if not one.counts:
        ends = f"{100 * one.difference_low:+.1f} to {100 * one.difference_high:+.1f}"
        return f"not distinguishable from {NAMES[one.baseline]} ({ends} points)"
    side = "above" if one.difference > 0 else "below"
    part = "" if one.answers == one.questions else f" on {one.answers} of {one.questions} questions"
    return f"{abs(100 * one.difference):.1f} points ({low:.1f} to {high:.1f}) {side} {NAMES[one.baseline]}{part}"


def _listed(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
