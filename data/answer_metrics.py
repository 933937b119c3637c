"""Metrics of free-form answers: (generated text, accepted answers) -> score from 0 to 1, by name.

Texts are compared as in SQuAD: in lower case, without punctuation, articles and extra whitespace.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+")
ANLS_THRESHOLD = 0.5  # scores 0 from this normalised edit distance on


def exact(generated: str, accepted: Sequence[str]) -> float:
    """1 if the text equals an accepted answer."""
    return float(normal(generated) in {normal(answer) for answer in accepted})


def contains(generated: str, accepted: Sequence[str]) -> float:
    """1 if the text contains an accepted answer as whole words."""
    return float(any(f" {normal(answer)} " in f" {normal(generated)} " for answer in accepted))


def anls(generated: str, accepted: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the closest accepted answer; 0 up to 0.5 (DocVQA)."""
    return max(_similarity(normal(generated), normal(answer)) for answer in accepted)


def numeric(generated: str, accepted: Sequence[str]) -> float:
    """1 if the first number in the text equals that of an accepted answer, to a relative tolerance of 1e-6."""
    number = _number(generated)
    values = [_number(answer) for answer in accepted]
    return float(number is not None and any(v is not None and abs(number - v) <= 1e-6 * abs(v) for v in values))


def f1(generated: str, accepted: Sequence[str]) -> float:
    """F1 score over words, against the best-matching accepted answer (SQuAD)."""
    return max(_overlap(normal(generated).split(), normal(answer).split()) for answer in accepted)


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    metric.__name__: metric for metric in (exact, contains, anls, numeric, f1)
}


def normal(text: str) -> str:
    """The normalised text; articles are kept if the text has no other words."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in bare.split() if word not in ("a", "an", "the")) or " ".join(bare.split())


def _similarity(a: str, b: str) -> float:
    wrong = _edits(a, b) / max(len(a), len(b), 1)
    return 1 - wrong if wrong < ANLS_THRESHOLD else 0.0


def _edits(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def _number(text: str) -> float | None:
    match = NUMBER.search(text)
    return float(match[0].replace(",", "")) if match else None


def _overlap(generated: list[str], accepted: list[str]) -> float:
    common = sum((Counter(generated) & Counter(accepted)).values())
    return 2 * common / (len(generated) + len(accepted)) if common else 0.0
