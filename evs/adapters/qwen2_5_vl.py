"""Qwen2.5-VL: a video is one box whose time axis follows the clock."""

from __future__ import annotations

from evs.adapters.qwen import QwenVL
from evs.positions import Box, timed_box
from evs.types import Grid


class Qwen25VL(QwenVL):
    """Scores the un-windowed merger output."""

    def video_boxes(self, grid: Grid, second_per_grid: float) -> list[Box]:
        speed = self.model.config.vision_config.tokens_per_second
        return [timed_box(grid, tokens_per_second=speed, second_per_grid=second_per_grid)]
