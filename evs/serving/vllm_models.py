"""vLLM's two Qwen families, serving pruned videos at the positions of the unpruned prompt.

All but the kept rows is known before the mask. So a request's text is placed for good when it arrives, its media's
slots are marked with their base, every row that leaves the encoder carries its position relative to that base, and
each prefill chunk fills its slots. Nothing is searched for in the prompt: neither the order of media nor chunks
matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLMultiModalProcessor
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from evs.positions import Box, frame_boxes, image_box, rope_positions, timed_box
from evs.score import FrameDelta
from evs.select import select
from evs.types import Grid

DIGITS = 3  # base 256, so that every digit is exact in bfloat16 and float16: positions up to 16.7 million
CHANNELS = 3 * DIGITS


def to_channels(positions_PM: Tensor) -> Tensor:
    """[M, CHANNELS] int64 digits of positions >= 0, to ride beside the embeddings in any float dtype."""
    return torch.stack([positions_PM >> 8 * digit & 255 for digit in range(DIGITS)]).flatten(0, 1).T


def from_channels(channels: Tensor) -> Tensor:
    """[3, M] int64: the inverse of `to_channels`, whatever the float dtype."""
    digits = channels.T.long().unflatten(0, (DIGITS, 3))
    return sum(digits[digit] << 8 * digit for digit in range(DIGITS))


class PreservedPositions:
    """A mixin before a vLLM model: a family adds `_medium`, the positions within one medium's placeholder."""

    is_multimodal_pruning_enabled: bool
    config: Any

    def _medium(self, feature: Any) -> tuple[Tensor, int]:
        """([3, M] positions of an unpruned medium relative to its first placeholder, and of the token after it)."""
        raise NotImplementedError

    def _grid(self, thw: Sequence[int]) -> Grid:
        t, h, w = (int(size) for size in thw)
        merge = self.config.vision_config.spatial_merge_size
        return Grid(t, h // merge, w // merge)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        if not self.is_multimodal_pruning_enabled:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        positions = torch.empty(3, len(input_tokens), dtype=torch.long)
        cursor = following = 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            start, length = feature.mm_position.offset, feature.mm_position.length
            base = following + start - cursor
            positions[:, cursor:start] = torch.arange(following, base)
            following = base + self._medium(feature)[1]
            positions[:, start : start + length] = _mark(base, following)
            cursor = start + length
        positions[:, cursor:] = torch.arange(following, following + len(input_tokens) - cursor)
        # The V1 runner keeps this very tensor and may start a preempted request over: then the marks are needed again.
        positions.marks = positions.clone()  # type: ignore[attr-defined]
        return positions, _next_position(positions) - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """(the chunk's rows without their channels, all positions with the chunk's slots filled, next - length)."""
        marks = getattr(mrope_positions, "marks", mrope_positions)
        positions = mrope_positions.clone()
        with gpu_sync_allowed():
            relative = [from_channels(rows[:, -CHANNELS:]) for rows in multimodal_embeddings]
            if relative:
                rows = torch.cat(relative, dim=1).to(positions.device)
                slots = num_computed_tokens + (marks[0, num_computed_tokens:] < 0).nonzero().squeeze(1)
                slots = slots[: rows.shape[1]]
                positions[:, slots] = rows + _base(marks[:, slots])
            delta = _next_position(marks) - marks.shape[1]
        return [rows[:, :-CHANNELS] for rows in multimodal_embeddings], positions, delta

    def _postprocess_image_embeds_evs(self, images: Sequence[Tensor], image_input: Any) -> tuple[Tensor, ...]:
        if not self.is_multimodal_pruning_enabled:
            return tuple(images)
        grids = [self._grid(thw) for thw in image_input["image_grid_thw"].tolist()]
        return tuple(_carry(rows, _within([image_box(grid)])[0]) for rows, grid in zip(images, grids))


class ExactSeconds(Qwen2_5_VLMultiModalProcessor):
    """Keeps frame times out of the cast of all floats to the model's dtype: bfloat16 has 8 bits for them."""

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        data = super()._postprocess_hf_mm_data(mm_inputs, hf_processor_mm_kwargs, processed_data)
        videos = mm_inputs.get("video_metadata")
        if videos and self.info.ctx.get_mm_config().is_multimodal_pruning_enabled():
            patch = self.info.get_hf_processor(**hf_processor_mm_kwargs).video_processor.temporal_patch_size
            data["second_per_grid_ts"] = torch.tensor([patch / video.sampled_fps for video in videos])
        return data


@MULTIMODAL_REGISTRY.register_processor(
    ExactSeconds, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class Qwen25VL(PreservedPositions, Qwen2_5_VLForConditionalGeneration):
    """A video is one box on the clock of its real frame times."""

    def _medium(self, feature: Any) -> tuple[Tensor, int]:
        if feature.modality == "image":
            return _within([image_box(self._grid(feature.data["image_grid_thw"].data.tolist()))])
        grid = self._grid(feature.data["video_grid_thw"].data.tolist())
        return self._video(grid, float(feature.data["second_per_grid_ts"].data))

    def _video(self, grid: Grid, second_per_grid: float) -> tuple[Tensor, int]:
        speed = self.config.vision_config.tokens_per_second
        return _within([timed_box(grid, tokens_per_second=speed, second_per_grid=second_per_grid)])

    def _postprocess_video_embeds_evs(self, videos: Sequence[Tensor], video_input: Any) -> tuple[Tensor, ...]:
        if (seconds := video_input.get("second_per_grid_ts")) is None:
            raise ValueError("video embeddings came without second_per_grid_ts: pass it, or serve with pruning off")
        out = []
        for rows, thw, second in zip(videos, video_input["video_grid_thw"].tolist(), seconds.flatten().tolist()):
            grid = self._grid(thw)
            with gpu_sync_allowed():
                kept = select(FrameDelta()(rows, grid), self.video_pruning_rate).flatten().nonzero().squeeze(1)
            out.append(_carry(rows[kept], self._video(grid, second)[0].to(kept.device)[:, kept]))
        return tuple(out)


class Qwen3VL(PreservedPositions, Qwen3VLForConditionalGeneration):
    """Every temporal grid is an item between its timestamp and markers, all of them in the video's placeholder."""

    def _medium(self, feature: Any) -> tuple[Tensor, int]:
        if feature.modality == "image":
            return _within([image_box(self._grid(feature.data["image_grid_thw"].data.tolist()))])
        grid = self._grid(feature.data["video_grid_thw"].data.tolist())
        return rope_positions(self._span(grid, feature.data["timestamps"].data), frame_boxes(grid))

    def _span(self, grid: Grid, timestamps: Sequence[float]) -> Tensor:
        """[M] bool over an unpruned video's placeholder, True on video tokens, False on timestamps and markers."""
        ids = Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[grid.tokens_per_frame] * grid.T,
            timestamps=timestamps,
            tokenizer=self._tokenizer,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            video_token_id=self.config.video_token_id,
        ).full
        return torch.tensor(ids) == self.config.video_token_id

    def _get_expanded_positions(
        self, *, video_grid_thw: list[int], timestamps: Sequence[float], retention_mask: Tensor, **_: Any
    ) -> Tensor:
        """[M, CHANNELS] of a pruned video's rows; the stock model computes the mask and lays out the rows."""
        grid = self._grid(video_grid_thw)
        visual = self._span(grid, timestamps)
        with gpu_sync_allowed():
            kept = ~visual
            kept[visual] = retention_mask.flatten().cpu()
        channels = to_channels(rope_positions(visual, frame_boxes(grid))[0][:, kept])
        return channels.to(retention_mask.device)


def _within(boxes: list[Box]) -> tuple[Tensor, int]:
    return rope_positions(torch.ones(sum(box.grid.tokens for box in boxes), dtype=torch.bool), boxes)


def _carry(rows: Tensor, positions_PM: Tensor) -> Tensor:
    return torch.cat([rows, to_channels(positions_PM).to(rows)], dim=1)


def _mark(base: int, following: int) -> Tensor:
    """[3, 1] an unfilled slot: the medium's base, the position after the medium; negative, as no position is."""
    return torch.tensor([[-1 - base], [-1 - following], [-1]])


def _base(marks: Tensor) -> Tensor:
    return -1 - marks[0]


def _next_position(marks: Tensor) -> int:
    """The position of the first generated token, from the prompt's last one."""
    text, mark = marks[:2, -1].tolist()
    return text + 1 if text >= 0 else -1 - mark
