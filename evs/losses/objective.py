"""The objective of a step as data: cross-entropy of every view, plus divergences between views (distillation).

The views are rows (R), lowest rate first. If the base model teaches, its outputs for the first view are row 0, before
those of the views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


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
