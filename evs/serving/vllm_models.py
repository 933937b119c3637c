"""vLLM's Qwen families, serving pruned videos at the positions of the unpruned prompt (see preserved.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen3_vl
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLMultiModalProcessor
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from evs.methods.evs import FrameDelta
from evs.positions import frame_boxes, image_box, rope_positions, timed_box
from evs.selection import select
from evs.serving.kept_masks import KeptMasks
from evs.serving.preserved import Prompts, Slots, carry, to_channels, within
from evs.serving.vllm_requests import checked
from evs.serving.vllm_tower import SeesSurvivors
from evs.types import Grid


class PreservedPositions:
    """A mixin for vLLM models. A family adds the positions of its videos. Without pruning the model is the stock
    one."""

    is_multimodal_pruning_enabled: bool
    video_pruning_rate: float
    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._prompts = Prompts()
        self.kept_masks = KeptMasks()

    def _video(self, data: Any) -> tuple[Tensor, int]:
        """([3, M] positions of an unpruned video relative to its first placeholder, number of positions that it
        takes)."""
        raise NotImplementedError

    def _slots(self, feature: Any) -> Slots:
        if feature.modality == "image":
            extent = within([image_box(self._grid(feature.data["image_grid_thw"].data.tolist()))])[1]
        else:
            extent = self._video(feature.data)[1]
        return Slots(feature.mm_position.offset, feature.mm_position.length, extent)

    def _grid(self, thw: Sequence[int]) -> Grid:
        t, h, w = (int(size) for size in thw)
        merge = self.config.vision_config.spatial_merge_size
        return Grid(t, h // merge, w // merge)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        if not self.is_multimodal_pruning_enabled:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        return self._prompts.place(len(input_tokens), [self._slots(feature) for feature in mm_features])

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        row = input_ids.data_ptr() if isinstance(input_ids, Tensor) else id(input_ids)
        with gpu_sync_allowed():
            return self._prompts.fill(mrope_positions, multimodal_embeddings, num_computed_tokens, row)

    def _postprocess_video_embeds_evs(self, videos: Sequence[Tensor], video_input: Any) -> tuple[Tensor, ...]:
        if not self.is_multimodal_pruning_enabled:
            return super()._postprocess_video_embeds_evs(videos, video_input)  # type: ignore[misc]
        grids_thw = video_input["video_grid_thw"].tolist()
        out = []
        with gpu_sync_allowed():
            contents = self._contents(video_input, grids_thw)
            for video, (rows, thw, content) in enumerate(zip(videos, grids_thw, contents, strict=True)):
                grid = self._grid(thw)
                choose = partial(self._choose, rows, thw)
                keep_THW = self.kept_masks.recall(content, (grid.T, grid.H, grid.W), choose)
                out.append(self._survivors(rows[keep_THW.flatten()], keep_THW, video, video_input))
        return tuple(out)

    def _contents(self, video_input: Any, grids_thw: Sequence[Sequence[int]]) -> Sequence[Tensor]:
        """The input of each video: its pixels, or embeddings from an encoder."""
        if video_input["type"] == "pixel_values_videos":
            return video_input["pixel_values_videos"].split([t * h * w for t, h, w in grids_thw])
        return video_input["video_embeds"].split([self._grid(thw).tokens for thw in grids_thw])

    def _choose(self, rows: Tensor, thw: Sequence[int]) -> Tensor:
        """The keep mask of a video with the features `rows` [M, C], over its merged tokens."""
        return select(FrameDelta()(rows, self._grid(thw)), self.video_pruning_rate)

    def _survivors(self, rows_MD: Tensor, keep_THW: Tensor, video: int, video_input: Any) -> Tensor:
        """The kept rows of one video of the input, with their positions."""
        raise NotImplementedError

    def _postprocess_image_embeds_evs(self, images: Sequence[Tensor], image_input: Any) -> tuple[Tensor, ...]:
        if not self.is_multimodal_pruning_enabled:
            return tuple(images)
        grids = [self._grid(thw) for thw in image_input["image_grid_thw"].tolist()]
        return tuple(carry(rows, within([image_box(grid)])[0].to(rows.device)) for rows, grid in zip(images, grids))


class ExactSeconds(Qwen2_5_VLMultiModalProcessor):
    """Keeps frame times in float32: vLLM casts all floats to the model's dtype, and bfloat16 has 8 significant bits."""

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Any) -> Any:
        if not ("videos" in hf_data and self._pruning):
            return super()._call_hf_processor(hf_data, hf_kwargs)
        # The frames in the end, because the processor may sample again (do_sample_frames).
        data = super()._call_hf_processor(hf_data, {**hf_kwargs, "return_metadata": True})
        patch = self.info.get_hf_processor(**hf_kwargs).video_processor.temporal_patch_size
        data["second_per_grid_ts"] = torch.tensor([patch / video.sampled_fps for video in data.pop("video_metadata")])
        return data

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        data = super()._postprocess_hf_mm_data(mm_inputs, hf_processor_mm_kwargs, processed_data)
        if "video_embeds" in data and "second_per_grid_ts" not in data and self._pruning:
            raise ValueError("video_embeds without second_per_grid_ts: pass the seconds between grids, one per video")
        return data

    @property
    def _pruning(self) -> bool:
        return self.info.ctx.get_mm_config().is_multimodal_pruning_enabled()


class OnTheClock(PreservedPositions):
    """A video is one box on the clock of its real frame times."""

    def _video(self, data: Any) -> tuple[Tensor, int]:
        return self._timed(self._grid(data["video_grid_thw"].data.tolist()), float(data["second_per_grid_ts"].data))

    def _timed(self, grid: Grid, second_per_grid: float) -> tuple[Tensor, int]:
        speed = self.config.vision_config.tokens_per_second
        return within([timed_box(grid, tokens_per_second=speed, second_per_grid=second_per_grid)])

    def _survivors(self, rows_MD: Tensor, keep_THW: Tensor, video: int, video_input: Any) -> Tensor:
        grid, second = Grid(*keep_THW.shape), float(video_input["second_per_grid_ts"].flatten()[video])
        with gpu_sync_allowed():
            kept = keep_THW.flatten().nonzero().squeeze(1)
            return carry(rows_MD, self._timed(grid, second)[0].to(kept.device)[:, kept])


@checked
@MULTIMODAL_REGISTRY.register_processor(
    ExactSeconds, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class Qwen25VL(SeesSurvivors, OnTheClock, Qwen2_5_VLForConditionalGeneration): ...


class FrameByFrame(PreservedPositions):
    """Every temporal grid follows its timestamp, between markers, all within the placeholder of the video."""

    _tokenizer: Any
    video_pruning_method: str

    def _video(self, data: Any) -> tuple[Tensor, int]:
        grid = self._grid(data["video_grid_thw"].data.tolist())
        return rope_positions(self._span(grid, data["timestamps"].data), frame_boxes(grid))

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
        """[M, CHANNELS] of a pruned video's rows; the stock model computes the mask and arranges the rows."""
        grid = self._grid(video_grid_thw)
        visual = self._span(grid, timestamps)
        kept = ~visual
        with gpu_sync_allowed():
            kept[visual] = retention_mask.flatten().cpu()
        channels = to_channels(rope_positions(visual, frame_boxes(grid))[0][:, kept])
        return channels.to(retention_mask.device)

    def _choose(self, rows: Tensor, thw: Sequence[int]) -> Tensor:
        vidcom2 = self.video_pruning_method == "vidcom2"
        choose = qwen3_vl.vidcom2_compute_retention_mask if vidcom2 else qwen3_vl.compute_retention_mask
        merge = self.config.vision_config.spatial_merge_size
        return choose(rows, thw, spatial_merge_size=merge, q=self.video_pruning_rate)

    def _survivors(self, rows_MD: Tensor, keep_THW: Tensor, video: int, video_input: Any) -> Tensor:
        with gpu_sync_allowed():
            return self._create_final_video_embeddings(  # type: ignore[attr-defined]
                video_embeddings=rows_MD,
                num_tokens_per_frame=keep_THW.sum(dim=(1, 2)).tolist(),
                timestamps=video_input.timestamps[video],
                video_grid_thw=video_input["video_grid_thw"][video].tolist(),
                retention_mask=keep_THW.flatten(),
            )


@checked
class Qwen3VL(SeesSurvivors, FrameByFrame, Qwen3VLForConditionalGeneration): ...


@checked
class Qwen3VLMoe(SeesSurvivors, FrameByFrame, Qwen3VLMoeForConditionalGeneration): ...
