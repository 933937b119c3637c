"""The objective of a run's steps, and its value from logits that were computed at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from evs.losses.objective import DistillationPair, Losses, Objective
from train.config import DistillConfig
from train.views import Rate


def build_objective(config: DistillConfig, rates: Sequence[Rate]) -> Objective:
    """The objective of views at `rates`: the mean over trained views of cross-entropy plus weighted divergences.

    Raise ValueError if a view is pruned less than the view that teaches it.
    """
    base = config.needs_base
    only_teaches = config.alone and len(rates) > 1
    first, end, trained = int(base), int(base) + len(rates), len(rates) - only_teaches
    pairs: list[DistillationPair] = []
    if config.weight:
        _check_teacher(rates)
        teacher = 0 if config.teacher == "base" else first
        students = range(teacher + 1, end)
        pairs += [DistillationPair(config.teacher, teacher, student, config.weight / trained) for student in students]
    if config.base_weight:
        unpruned = [row for row, rate in enumerate(rates, first) if not any(_by_video(rate))]
        pairs += [DistillationPair("base", 0, row, config.base_weight / trained) for row in unpruned]
    weights = (0.0,) * (base + only_teaches) + (1 / trained,) * trained
    return Objective(weights, tuple(pairs), config.temperature, config.direction == "reverse", base)


def _check_teacher(rates: Sequence[Rate]) -> None:
    for rate in rates[1:]:
        if any(teacher > student for teacher, student in zip(_by_video(rates[0]), _by_video(rate))):
            raise ValueError(
                f"a teacher at rate {rates[0]} is pruned more than its student at rate {rate}: swap the views"
            )


def _by_video(rate: Rate) -> Sequence[float]:
    return (rate,) if isinstance(rate, float | int) else rate


def from_logits(logits: Sequence[Tensor], labels_T: Tensor, objective: Objective) -> Losses:
    """The losses of logits, one [T, V] tensor per row, at labels [T]."""
    rows = [row.float() for row in logits]
    entropies = [cross_entropy(row, labels_T, reduction="sum") for row in rows]
    divergences = [_divergence(rows[pair.student], rows[pair.teacher].detach(), objective) for pair in objective.pairs]
    parts = [weight * entropy for weight, entropy in zip(objective.weights, entropies) if weight]
    parts += [pair.weight * value for pair, value in zip(objective.pairs, divergences)]
    correct_R = torch.stack([(row.argmax(-1) == labels_T).sum() for row in rows]).float()
    divergence_L = torch.stack(divergences).detach() if divergences else correct_R.new_zeros(0)
    return Losses(torch.stack(parts).sum(), torch.stack(entropies).detach(), correct_R, divergence_L)


def _divergence(student_TV: Tensor, teacher_TV: Tensor, objective: Objective) -> Tensor:
    student, teacher = ((logits / objective.temperature).log_softmax(-1) for logits in (student_TV, teacher_TV))
    p, q = (student, teacher) if objective.reverse else (teacher, student)
    return objective.temperature**2 * kl_div(q, p, reduction="sum", log_target=True)  # KL(p || q)
