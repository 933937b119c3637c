"""Qwen2.5-VL: a video is one box whose time axis follows the clock."""

from __future__ import annotations

from evs.families.mrope.adapter import MRopeAdapter
from evs.positions import Box, image_box, stock_vllm, timed_box
from evs.types import Grid


class Qwen25VL(MRopeAdapter):
    """Scores the un-windowed merger output."""

    def image_box(self, grid: Grid) -> Box:
        box = image_box(grid)
        return box if self.scheme == "preserve" else stock_vllm(box, self.scheme)

    def video_boxes(self, grid: Grid, second_per_grid: float) -> list[Box]:
        speed = self.model.config.vision_config.tokens_per_second
        if self.scheme == "preserve":
            return [timed_box(grid, tokens_per_second=speed, second_per_grid=second_per_grid)]
        box = timed_box(grid, tokens_per_second=speed, second_per_grid=int(second_per_grid))
        return [stock_vllm(box, self.scheme)]
