"""What check_serving concludes from two answers to one prompt, ours and the server's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.serving.ours import Answer


@dataclass(frozen=True)
class Verdict:
    """One case at one rate. `text` is what the table shows."""

    text: str
    agrees: bool
    error: str = ""  # what the server said
    ties: int = 0  # tokens that the server kept in place of others of equal score
    kept: int = 0  # tokens of videos that it kept, where it says so
    compared: bool = True  # False where the server cannot answer the prompt


def compare(ours: Answer, theirs: dict[str, Any], tolerance: float) -> Verdict:
    """Lengths first, then positions, then the log-probabilities as long as the chosen tokens are the same.

    Where they part at two tokens that are equally likely within the tolerance, what follows is no difference.
    """
    if "limit" in theirs:
        return Verdict("too long for the server", agrees=True, error=theirs["limit"], compared=False)
    if "unread" in theirs:
        return Verdict("not read by the server", agrees=True, error=theirs["unread"], compared=False)
    if "error" in theirs:
        return Verdict("raises", False, theirs["error"])
    said, choice = ours.generation, ours.choice
    if len(theirs["prompt_ids"]) != said.kept_tokens:
        return Verdict(f"{len(theirs['prompt_ids'])} tokens, not {said.kept_tokens}", False)
    same = [a == b for a, b in zip(said.tokens, theirs["tokens"])]
    agreed = same.index(False) if False in same else len(same)
    pairs = list(zip(said.logprobs, theirs["logprobs"]))[: agreed + 1]
    worst = max(abs(mine.get(int(token), -1e9) - value) for mine, step in pairs for token, value in step.items())
    theirs_PN = theirs.get("positions", ours.positions)  # a server says none of prompts that it ran together
    moved = sum(mine != other for mine, other in zip(zip(*ours.positions), zip(*theirs_PN)))
    text = f"{worst:.1e}" + (f", tie of {choice.ties}" if choice.ties else "") + (f", {moved} moved" if moved else "")
    if choice.others:
        text += f", kept {choice.others} others" + (f" by {choice.gap:.0e} of score" if choice.gap else "")
    even = (
        agreed < len(same) and _gap(said.logprobs[agreed], said.tokens[agreed], theirs["tokens"][agreed]) <= tolerance
    )
    text += f", first {agreed} tokens" * even
    agrees = not moved and not choice.others and (even or agreed == len(same)) and worst <= tolerance
    return Verdict(text, agrees, ties=choice.ties, kept=sum(map(len, choice.kept)))


def _gap(top: dict[int, float], mine: int, other: int) -> float:
    """Between the log-probabilities of two tokens of one step."""
    return abs(top[mine] - top.get(other, float("inf")))


def share_of_ties(verdicts: Sequence[Verdict]) -> str:
    """How many of the kept tokens are others of equal score, in one line; empty where no token was pruned."""
    ties, kept = sum(verdict.ties for verdict in verdicts), sum(verdict.kept for verdict in verdicts)
    return f"ties at the cut: {ties} of {kept} kept video tokens ({ties / kept:.2%})" if kept else ""


def summary(verdicts: Sequence[Verdict], tolerance: float) -> str:
    """What is wrong with them, in one line; empty where all that was compared agrees."""
    if differing := sum(not verdict.agrees for verdict in verdicts):
        return f"{differing} of {len(verdicts)} differ by more than {tolerance:g}"
    if not any(verdict.compared for verdict in verdicts):
        return "nothing was compared: this server can answer none of the prompts"
    return ""
