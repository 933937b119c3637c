"""What a step minimises over its readings of a batch: cross-entropy, and between readings a divergence (distillation).

Readings are rows (R): the views, lowest rate first, behind the base's reading of the first view where that teaches.
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
    """One row teaches another: no gradient reaches the teacher."""

    source: str  # view | base
    teacher: int
    student: int
    weight: float


@dataclass(frozen=True)
class Objective:
    """Weights of every row's cross-entropy, and of divergences between rows."""

    weights: tuple[float, ...]  # 0 for a first row that teaches alone, and is read without gradient
    pairs: tuple[DistillationPair, ...] = ()
    temperature: float = 1.0
    reverse: bool = False  # KL(student || teacher) in place of KL(teacher || student)
    base: bool = False  # the first row is the base's

    @property
    def no_grad_rows(self) -> int:
        """Rows that are read without gradient."""
        return self.weights.count(0)


class Losses(NamedTuple):
    """Float32 sums over the labelled tokens."""

    total: Tensor  # scalar, the objective; the one with a gradient
    entropy_R: Tensor
    correct_R: Tensor  # tokens whose label has the largest logit
    divergence_L: Tensor  # of every pair, without its weight


def mean_objective(views: int) -> Objective:
    """Cross-entropy alone."""
    return Objective((1 / views,) * views)


def build_objective(config: DistillConfig, rates: Sequence[Rate]) -> Objective:
    """That of views at `rates`: the mean over those that are trained of their cross-entropy plus weighted divergences.

    Raises ValueError for a view that is pruned less than the one that teaches it.
    """
    base = config.needs_base
    alone = config.alone and len(rates) > 1
    first, end, trained = int(base), int(base) + len(rates), len(rates) - alone
    pairs: list[DistillationPair] = []
    if config.weight:
        _check_teacher(rates)
        teacher = 0 if config.teacher == "base" else first
        students = range(teacher + 1, end)
        pairs += [DistillationPair(config.teacher, teacher, student, config.weight / trained) for student in students]
    if config.base_weight:
        unpruned = [row for row, rate in enumerate(rates, first) if not any(_by_video(rate))]
        pairs += [DistillationPair("base", 0, row, config.base_weight / trained) for row in unpruned]
    weights = (0.0,) * (base + alone) + (1 / trained,) * trained
    return Objective(weights, tuple(pairs), config.temperature, config.direction == "reverse", base)


def _check_teacher(rates: Sequence[Rate]) -> None:
    for rate in rates[1:]:
        if any(above > below for above, below in zip(_by_video(rates[0]), _by_video(rate))):
            raise ValueError(f"a teacher at rate {rates[0]} is pruned more than its student at {rate}: swap the views")


def _by_video(rate: Rate) -> Sequence[float]:
    return (rate,) if isinstance(rate, float | int) else rate


def from_logits(logits: Sequence[Tensor], labels_T: Tensor, objective: Objective) -> Losses:
    """The losses of rows of logits [T, V]."""
    rows = [each.float() for each in logits]
    entropies = [cross_entropy(row, labels_T, reduction="sum") for row in rows]
    divergences = [_divergence(rows[each.student], rows[each.teacher].detach(), objective) for each in objective.pairs]
    parts = [weight * each for weight, each in zip(objective.weights, entropies) if weight]
    parts += [pair.weight * each for pair, each in zip(objective.pairs, divergences)]
    correct_R = torch.stack([(row.argmax(-1) == labels_T).sum() for row in rows]).float()
    apart = torch.stack(divergences).detach() if divergences else correct_R.new_zeros(0)
    return Losses(torch.stack(parts).sum(), torch.stack(entropies).detach(), correct_R, apart)


def _divergence(student_TV: Tensor, teacher_TV: Tensor, objective: Objective) -> Tensor:
    student, teacher = ((each / objective.temperature).log_softmax(-1) for each in (student_TV, teacher_TV))
    of, other = (student, teacher) if objective.reverse else (teacher, student)
    return objective.temperature**2 * kl_div(other, of, reduction="sum", log_target=True)


def divergence(student_TV: Tensor, teacher_TV: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """(the divergence summed over rows, its gradient in the student's logits), times the temperature's square so that
    the gradient's scale does not follow it."""
    student, teacher = ((each / objective.temperature).log_softmax(-1) for each in (student_TV, teacher_TV))
    gap = student - teacher
    if objective.reverse:  # d/dz KL(q || p) = q (log q - log p - KL)
        each = (student.exp() * gap).sum(-1, keepdim=True)
        value, pull = each.sum(), gap.sub_(each).mul_(student.exp_())
    else:  # d/dz KL(p || q) = q - p
        value = -(teacher.exp() * gap).sum()
        pull = student.exp_().sub_(teacher.exp_())
    return objective.temperature**2 * value, objective.temperature * pull
