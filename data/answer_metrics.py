"""How right a free answer is: (what was written, the accepted answers) -> a score from 0 to 1, by the metric's name.

Texts are compared as SQuAD does: in lower case, without punctuation, articles and extra white space.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+")
FAR = 0.5  # ANLS: half of the letters or more are wrong


def exact(written: str, accepted: Sequence[str]) -> float:
    """1 if it is an accepted answer."""
    return float(normal(written) in {normal(each) for each in accepted})


def contains(written: str, accepted: Sequence[str]) -> float:
    """1 if an accepted answer stands in it as whole words."""
    return float(any(f" {normal(each)} " in f" {normal(written)} " for each in accepted))


def anls(written: str, accepted: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest accepted answer, 0 from half of its letters wrong (DocVQA)."""
    return max(_similarity(normal(written), normal(each)) for each in accepted)


def numeric(written: str, accepted: Sequence[str]) -> float:
    """1 if the first number in it equals that of an accepted answer, up to rounding in the sixth digit."""
    number = _number(written)
    values = [_number(each) for each in accepted]
    return float(number is not None and any(v is not None and abs(number - v) <= 1e-6 * abs(v) for v in values))


def f1(written: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, of the accepted answer that it fits best (SQuAD)."""
    return max(_overlap(normal(written).split(), normal(each).split()) for each in accepted)


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    each.__name__: each for each in (exact, contains, anls, numeric, f1)
}


def normal(text: str) -> str:
    """The text as it is compared; of nothing but articles and punctuation, its letters."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in bare.split() if word not in ("a", "an", "the")) or " ".join(bare.split())


def _similarity(a: str, b: str) -> float:
    wrong = _edits(a, b) / max(len(a), len(b), 1)
    return 1 - wrong if wrong < FAR else 0.0


def _edits(a: str, b: str) -> int:
    """Insertions, deletions and replacements that make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def _number(text: str) -> float | None:
    found = NUMBER.search(text)
    return float(found[0].replace(",", "")) if found else None


def _overlap(written: list[str], accepted: list[str]) -> float:
    common = sum((Counter(written) & Counter(accepted)).values())
    return 2 * common / (len(written) + len(accepted)) if common else 0.0
