"""The comparison of two answers to one prompt, ours and the server's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.serving.ours import Answer


@dataclass(frozen=True)
class Verdict:
    """The result for one case at one rate. `text` is its cell in the table."""

    text: str
    agrees: bool
    error: str = ""  # message of the server
    ties: int = 0  # tokens that the server kept instead of others of equal score
    kept: int = 0  # video tokens that the server kept, if it reports them
    compared: bool = True  # False if the server cannot answer the prompt


def compare(ours: Answer, theirs: dict[str, Any], tolerance: float) -> Verdict:
    """Compare lengths, positions, and log-probabilities up to the first generated token that differs.

    If the answers then continue with tokens that are equally likely within the tolerance, they agree.
    """
    if "limit" in theirs:
        return Verdict("too long for the server", agrees=True, error=theirs["limit"], compared=False)
    if "unread" in theirs:
        return Verdict("not read by the server", agrees=True, error=theirs["unread"], compared=False)
    if "error" in theirs:
        return Verdict("raises", False, theirs["error"])
    generation, choice = ours.generation, ours.choice
    if len(theirs["prompt_ids"]) != generation.kept_tokens:
        return Verdict(f"{len(theirs['prompt_ids'])} tokens, not {generation.kept_tokens}", False)
    same = [a == b for a, b in zip(generation.tokens, theirs["tokens"])]
    agreed = same.index(False) if False in same else len(same)
    pairs = list(zip(generation.logprobs, theirs["logprobs"]))[: agreed + 1]
    worst = max(abs(mine.get(int(token), -1e9) - value) for mine, step in pairs for token, value in step.items())
    theirs_PN = theirs.get("positions", ours.positions)  # not reported for prompts that the server ran together
    moved = sum(a != b for a, b in zip(zip(*ours.positions), zip(*theirs_PN)))
    text = f"{worst:.1e}" + (f", tie of {choice.ties}" if choice.ties else "") + (f", {moved} moved" if moved else "")
    if choice.others:
        text += f", kept {choice.others} others" + (f" by {choice.gap:.0e} of score" if choice.gap else "")
    equally_likely = (
        agreed < len(same)
        and _gap(generation.logprobs[agreed], generation.tokens[agreed], theirs["tokens"][agreed]) <= tolerance
    )
    text += f", first {agreed} tokens" * equally_likely
    agrees = not moved and not choice.others and (equally_likely or agreed == len(same)) and worst <= tolerance
    return Verdict(text, agrees, ties=choice.ties, kept=sum(map(len, choice.kept)))


def _gap(top: dict[int, float], mine: int, servers: int) -> float:
    """Difference of the log-probabilities of two tokens in one step."""
    return abs(top[mine] - top.get(servers, float("inf")))


def share_of_ties(verdicts: Sequence[Verdict]) -> str:
    """One line with the share of ties among kept tokens; empty if no token was pruned."""
    ties, kept = sum(verdict.ties for verdict in verdicts), sum(verdict.kept for verdict in verdicts)
    return f"ties at the cut: {ties} of {kept} kept video tokens ({ties / kept:.2%})" if kept else ""


def summary(verdicts: Sequence[Verdict], tolerance: float) -> str:
    """One line about what differs; empty if everything that was compared agrees."""
    if differing := sum(not verdict.agrees for verdict in verdicts):
        return f"{differing} of {len(verdicts)} differ by more than {tolerance:g}"
    if not any(verdict.compared for verdict in verdicts):
        return "nothing was compared: this server can answer none of the prompts"
    return ""
