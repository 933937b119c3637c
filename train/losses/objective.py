"""The objective of a step: cross-entropy of every view, plus divergences between views (distillation).

The views are rows (R), lowest rate first. If the base model teaches, its outputs for the first view are row 0, before
those of the views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from train.config import DistillConfig
from train.views import Rate


class DistillationPair(NamedTuple):
    """A teacher row and its student row. No gradient reaches the teacher."""

    source: str  # kind of teacher: "view" or "base"
    teacher: int
    student: int
    weight: float


@dataclass(frozen=True)
class Objective:
    """The weights of every row's cross-entropy and of the divergences between rows."""

    weights: tuple[float, ...]  # 0 for a first row that only teaches and has no gradient
    pairs: tuple[DistillationPair, ...] = ()
    temperature: float = 1.0
    reverse: bool = False  # KL(student || teacher) in place of KL(teacher || student)
    base: bool = False  # row 0 is the base model's

    @property
    def no_grad_rows(self) -> int:
        """Number of leading rows without gradient."""
        return self.weights.count(0)


class Losses(NamedTuple):
    """Float32 sums over the labelled tokens, per row (R) or per distillation pair (L)."""

    total: Tensor  # scalar, the objective; the only one with a gradient
    entropy_R: Tensor
    correct_R: Tensor  # tokens whose label has the largest logit
    divergence_L: Tensor  # without the weight of the pair


def mean_objective(views: int) -> Objective:
    """The mean cross-entropy of `views` views, without distillation."""
    return Objective((1 / views,) * views)


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


def divergence(student_TV: Tensor, teacher_TV: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """(divergence summed over tokens, its gradient with respect to the student's logits [T, V]).

    Both are multiplied by the square of the temperature, so that the gradient's scale does not depend on it.
    """
    student, teacher = ((logits / objective.temperature).log_softmax(-1) for logits in (student_TV, teacher_TV))
    gap = student - teacher
    if objective.reverse:  # d/dz KL(q || p) = q (log q - log p - KL)
        kl_T1 = (student.exp() * gap).sum(-1, keepdim=True)
        value, grad_TV = kl_T1.sum(), gap.sub_(kl_T1).mul_(student.exp_())
    else:  # d/dz KL(p || q) = q - p
        value = -(teacher.exp() * gap).sum()
        grad_TV = student.exp_().sub_(teacher.exp_())
    return objective.temperature**2 * value, objective.temperature * grad_TV
