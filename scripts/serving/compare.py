"""What check_serving concludes from two answers to one prompt, ours and the server's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evs.generate import Generation


@dataclass(frozen=True)
class Verdict:
    """One case at one rate. `text` is what the table shows."""

    text: str
    agrees: bool
    error: str = ""  # what the server said


def compare(ours: Generation, at: list[list[int]], theirs: dict[str, Any], tolerance: float) -> Verdict:
    """Lengths first, then positions, then the log-probabilities as long as the chosen tokens are the same."""
    if "error" in theirs:
        return Verdict("raises", False, theirs["error"])
    if len(theirs["prompt_ids"]) != ours.kept_tokens:
        return Verdict(f"{len(theirs['prompt_ids'])} tokens, not {ours.kept_tokens}", False)
    same = [a == b for a, b in zip(ours.tokens, theirs["tokens"])]
    agreed = same.index(False) if False in same else len(same)
    pairs = list(zip(ours.logprobs, theirs["logprobs"]))[: agreed + 1]
    worst = max(abs(mine.get(int(token), -1e9) - value) for mine, step in pairs for token, value in step.items())
    moved = sum(mine != other for mine, other in zip(zip(*at), zip(*theirs["positions"])))
    text = f"{worst:.1e}" + (f", {moved} moved" if moved else "")
    return Verdict(text, not moved and agreed == len(same) and worst <= tolerance)
