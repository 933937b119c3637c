"""Whether the scores of a pruning method see change: the first thing to look at on a new model."""

from __future__ import annotations

from torch import Tensor

CHANGED = 0.05  # fraction of the largest change of pixels in a clip, above which a token counts as changed


def score_area(scores_THW: Tensor, change_THW: Tensor) -> float | None:
    """The area under the ROC curve of the scores, for tokens whose pixels changed against those that stood still.

    It is the probability that a changed token scores above an unchanged one; ties count one half. `change_THW` are the
    differences of pixels to the previous temporal grid. The first grid is skipped, because every method keeps it. None
    if all tokens changed, or none.
    """
    change_M = change_THW[1:].flatten().double().cpu()
    changed_M = change_M > CHANGED * change_M.max() if len(change_M) else change_M.bool()
    positives, negatives = int(changed_M.sum()), int((~changed_M).sum())
    if not (positives and negatives):
        return None
    _, inverse_M, counts = scores_THW[1:].flatten().double().cpu().unique(return_inverse=True, return_counts=True)
    ranks_M = (counts.cumsum(0) - (counts - 1) / 2)[inverse_M]  # the mean rank of equal scores
    return float((ranks_M[changed_M].sum() - positives * (positives + 1) / 2) / (positives * negatives))
