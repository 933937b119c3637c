"""vLLM's Qwen families, serving pruned videos at the positions of the unpruned prompt (see preserved.py)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
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
from vllm.utils.torch_utils import async_tensor_h2d

from evs.methods.evs import FrameDelta
from evs.positions import frame_positions, image_box, timed_box
from evs.selection import keep_count, select
from evs.serving.kept_masks import KeptMasks
from evs.serving.preserved import Prompts, Slots, carry, within
from evs.serving.vllm_requests import KEYS, checked
from evs.serving.vllm_tower import SeesSurvivors
from evs.types import Grid

SPANS = 64  # media sizes with their times whose positions are remembered; 20,000 tokens take .6 MB


@dataclass(frozen=True)
class Span:
    """The tokens of an unpruned medium, on the CPU."""

    positions_PM: Tensor  # relative to the first token
    extent: int  # positions that it takes
    visual_V: Tensor | None = None  # its video tokens; None: all are
    text_2L: Tensor | None = None  # its other tokens and their ids


class PreservedPositions:
    """A mixin for vLLM models. A family adds the positions of its videos. Without pruning the model is the stock
    one. Nothing between the tower and the language model waits for the device or loops over frames."""

    is_multimodal_pruning_enabled: bool
    video_pruning_rate: float
    config: Any
    visual: Any
    times_field: str  # of a video, among what the processor returns

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._prompts = Prompts()
        lora = vllm_config.lora_config
        adapted_tower = lora is not None and lora.enable_tower_connector_lora  # features then depend on the adapter
        self.kept_masks = KeptMasks(limit=0) if adapted_tower else KeptMasks()
        self._video = lru_cache(SPANS)(self._video_span)
        self._image = lru_cache(SPANS)(lambda grid: Span(*within([image_box(grid)])))

    def load_weights(self, weights: Any) -> set[str]:
        self.kept_masks.clear()  # chosen by the features of the old weights
        return super().load_weights(weights)  # type: ignore[misc]

    def _video_span(self, grid: Grid, times: Hashable) -> Span:
        """The unpruned video, whose grids have these times."""
        raise NotImplementedError

    def _slots(self, feature: Any) -> Slots:
        if feature.modality == "image":
            span = self._image(self._grid(feature.data["image_grid_thw"].data.tolist()))
        else:
            times = feature.data[self.times_field].data
            span = self._video(self._grid(feature.data["video_grid_thw"].data.tolist()), hashable(times))
        return Slots(feature.mm_position.offset, feature.mm_position.length, span.extent)

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

    def _parse_and_validate_video_input(self, **kwargs: Any) -> Any:
        video_input = super()._parse_and_validate_video_input(**kwargs)  # type: ignore[misc]
        if video_input is not None and KEYS in kwargs:
            video_input.keys_V = [key.numpy().tobytes() for key in kwargs[KEYS]]
        return video_input

    def _postprocess_video_embeds_evs(self, videos: Sequence[Tensor], video_input: Any) -> tuple[Tensor, ...]:
        if not self.is_multimodal_pruning_enabled:
            return super()._postprocess_video_embeds_evs(videos, video_input)  # type: ignore[misc]
        kept = self._kept(video_input, lambda video, thw: self._choose(videos[video], thw))
        return self._carried([rows[kept_K] for rows, kept_K in zip(videos, kept)], kept, video_input)

    def _kept(self, video_input: Any, choose: Callable[[int, Sequence[int]], Tensor]) -> list[Tensor]:
        """The kept tokens [K] of every video; `choose` makes the mask of one that is not remembered."""
        kept = []
        # Grows when a weight is written in place. load_weights does not change it, and clears the masks itself.
        written = sum(weight._version for weight in self.visual.parameters() if not weight.is_inference())
        for video, (key, thw) in enumerate(zip(video_input.keys_V, video_input["video_grid_thw"].tolist())):
            grid = self._grid(thw)
            keep_M = self.kept_masks.recall((written, key), grid.tokens, partial(choose, video, thw))
            kept.append(keep_M.nonzero_static(size=self._kept_count(grid)).squeeze(1))
        return kept

    def _choose(self, rows: Tensor, thw: Sequence[int]) -> Tensor:
        """The keep mask of a video with the features `rows` [M, C], over its merged tokens."""
        return select(FrameDelta()(rows, self._grid(thw)), self.video_pruning_rate)

    def _kept_count(self, grid: Grid) -> int:
        return keep_count(grid, self.video_pruning_rate)

    def _carried(self, rows: Sequence[Tensor], kept: Sequence[Tensor], video_input: Any) -> tuple[Tensor, ...]:
        """The kept rows of every video, with the text between them and their positions."""
        spans = map(self._video, *self._grids_and_times(video_input))
        return tuple(self._carry(*video) for video in zip(rows, kept, spans, strict=True))

    def _grids_and_times(self, video_input: Any) -> tuple[list[Grid], list[Hashable]]:
        grids = [self._grid(thw) for thw in video_input["video_grid_thw"].tolist()]
        return grids, [hashable(times) for times in video_input[self.times_field]]

    def _carry(self, rows_MC: Tensor, slots_M: Tensor, span: Span) -> Tensor:
        """The rows of slots of a medium, with their positions."""
        return carry(rows_MC, async_tensor_h2d(span.positions_PM, rows_MC.device)[:, slots_M])

    def _postprocess_image_embeds_evs(self, images: Sequence[Tensor], image_input: Any) -> tuple[Tensor, ...]:
        if not self.is_multimodal_pruning_enabled:
            return tuple(images)
        spans = [self._image(self._grid(thw)) for thw in image_input["image_grid_thw"].tolist()]
        return tuple(carry(rows, async_tensor_h2d(span.positions_PM, rows.device)) for rows, span in zip(images, spans))


def hashable(times: Any) -> Hashable:
    """A video's time or times as they come from the processor, in the engine's batches too."""
    times = times.flatten().tolist() if isinstance(times, Tensor) else times
    return tuple(times) if isinstance(times, list | tuple) else (times,)


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
        if "video_grid_thw" in data and "second_per_grid_ts" not in data and self._pruning:
            raise ValueError("video_grid_thw without second_per_grid_ts: pass the seconds between grids, one per video")
        return data

    @property
    def _pruning(self) -> bool:
        return self.info.ctx.get_mm_config().is_multimodal_pruning_enabled()


class OnTheClock(PreservedPositions):
    """A video is one box on the clock of its real frame times."""

    times_field = "second_per_grid_ts"

    def _video_span(self, grid: Grid, times: Any) -> Span:
        speed = self.config.vision_config.tokens_per_second
        return Span(*within([timed_box(grid, tokens_per_second=speed, second_per_grid=times[0])]))


@checked
@MULTIMODAL_REGISTRY.register_processor(
    ExactSeconds, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class Qwen25VL(SeesSurvivors, OnTheClock, Qwen2_5_VLForConditionalGeneration): ...


class FrameByFrame(PreservedPositions):
    """Every temporal grid follows its timestamp, between markers, all within the placeholder of the video."""

    times_field = "timestamps"
    _tokenizer: Any
    video_pruning_method: str

    def _video_span(self, grid: Grid, times: Any) -> Span:
        ids = Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[grid.tokens_per_frame] * grid.T,
            timestamps=times,
            tokenizer=self._tokenizer,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            video_token_id=self.config.video_token_id,
        ).full
        ids_M = torch.tensor(ids)
        visual_M = ids_M == self.config.video_token_id
        text_L = (~visual_M).nonzero().squeeze(1)
        text_2L = torch.stack([text_L, ids_M[text_L]])
        return Span(*frame_positions(visual_M, grid), visual_M.nonzero().squeeze(1), text_2L)

    def _choose(self, rows: Tensor, thw: Sequence[int]) -> Tensor:
        vidcom2 = self.video_pruning_method == "vidcom2"
        choose = qwen3_vl.vidcom2_compute_retention_mask if vidcom2 else qwen3_vl.compute_retention_mask
        merge = self.config.vision_config.spatial_merge_size
        with gpu_sync_allowed() if vidcom2 else nullcontext():  # vLLM's VidCom2 reads scores back from the device
            return choose(rows, thw, spatial_merge_size=merge, q=self.video_pruning_rate)

    def _kept_count(self, grid: Grid) -> int:
        vidcom2 = self.video_pruning_method == "vidcom2"
        count = qwen3_vl.vidcom2_compute_retained_tokens_count if vidcom2 else qwen3_vl.compute_retained_tokens_count
        return count(tokens_per_frame=grid.tokens_per_frame, num_frames=grid.T, q=self.video_pruning_rate)

    def _carry(self, rows_MC: Tensor, slots_M: Tensor, span: Span) -> Tensor:
        device = rows_MC.device
        text_L, ids_L = async_tensor_h2d(span.text_2L, device)
        text = self.get_language_model().embed_input_ids(ids_L).to(rows_MC)  # type: ignore[attr-defined]
        rows = torch.cat([rows_MC, pad(text, (0, rows_MC.shape[1] - text.shape[1]))])
        slots = torch.cat([async_tensor_h2d(span.visual_V, device)[slots_M], text_L])
        order = slots.argsort()
        return super()._carry(rows[order], slots[order], span)


@checked
class Qwen3VL(SeesSurvivors, FrameByFrame, Qwen3VLForConditionalGeneration): ...


@checked
class Qwen3VLMoe(SeesSurvivors, FrameByFrame, Qwen3VLMoeForConditionalGeneration): ...
