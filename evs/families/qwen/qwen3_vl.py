"""Qwen3-VL, dense and mixture of experts: every temporal grid is an item of its own, its time given in text."""

from __future__ import annotations

from evs.families.mrope.adapter import MRopeAdapter
from evs.positions import Box, frame_boxes
from evs.types import Grid


class Qwen3VL(MRopeAdapter):
    """Scores the merger output and every deepstack output side by side; one mask prunes them all."""

    def video_boxes(self, grid: Grid, second_per_grid: float) -> list[Box]:
        return frame_boxes(grid)
