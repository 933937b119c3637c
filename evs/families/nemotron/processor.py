"""Nemotron's processor with the interface that `data.encoding` calls: frames, patches and text as on its server.

Every frame is resized to one number of patches, two frames make a temporal grid, and each grid stands behind the times
of its frames in words. The server samples evenly and reads the number of patches in the model's `vision_config`.
"""

from __future__ import annotations

from math import floor
from typing import Any, ClassVar

import torch
from torch import Tensor

ASKED: dict[str, Any] = {"input_data_format": "channels_first", "return_tensors": "pt"}


class NemotronProcessor:
    """The library's processor with the interface of Qwen's."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer, self.apply_chat_template = processor.tokenizer, processor.apply_chat_template
        self.chat_template, self.to_json_string = processor.chat_template, processor.to_json_string
        self.video_token, self.image_token = processor.video_token, processor.image_token
        self.marks = processor.image_start_token, processor.image_end_token
        self.video_processor = NemotronVideos(processor.video_processor)
        self.image_processor = NemotronImages(processor.image_processor)

    def replace_video_token(self, video: Any, number: int) -> str:
        """A line a temporal grid: when its frames were shot, then their placeholders."""
        (grids, height, width), metadata = video["video_grid_thw"][number].tolist(), video["video_metadata"][number]
        tokens, step = height * width // self.video_processor.merge_size**2, self.video_processor.temporal_patch_size
        milliseconds = int(1000 / metadata.fps)  # as servers count them
        times = [f"frame {i} sampled at {place * milliseconds / 1000:.2f} seconds" for i, place in _frames(metadata)]
        groups = [" and ".join(times[begin : begin + step]) for begin in range(0, grids * step, step)]
        return "\n".join(f"F{group[1:]}: {self._run(tokens)}" for group in groups)

    def replace_image_token(self, image: Any, number: int) -> str:
        return self._run(int(image["image_grid_thw"][number].prod()) // self.video_processor.merge_size**2)

    def _run(self, tokens: int) -> str:
        return self.marks[0] + self.image_token * tokens + self.marks[1]


def _frames(metadata: Any) -> list[tuple[int, float]]:
    return list(enumerate(metadata.frames_indices, 1))


class NemotronVideos:
    """The video processor. `size` and `cap_pixels_per_frame` are not used: `max_pixels` sets the patches of a frame."""

    size: ClassVar[dict[str, int]] = {"shortest_edge": 0, "longest_edge": 0}
    cap_pixels_per_frame = False
    resample = None
    unsupported = ("nframes", "min_frames")  # settings of one video that its server does not take

    def __init__(self, processor: Any) -> None:
        self.own = processor
        self.patch_size, self.temporal_patch_size = processor.patch_size, processor.temporal_patch_size
        self.merge_size = round(1 / processor.downsample_ratio)
        self.image_mean, self.image_std = processor.norm_mean, processor.norm_std
        self.fps, self.max_frames = 2.0, 32
        self.video_target_num_patches: int = processor.video_target_num_patches

    def configuration(self, policy: Any) -> dict[str, Any]:
        """The entries of the processor's configuration that a policy decides; ValueError where it cannot be had."""
        for name in ("min_pixels", "total_pixels"):
            if (value := getattr(policy, name)) is not None:
                raise ValueError(f"{name}={value}: Nemotron has one number of pixels for every frame; set max_pixels")
        cell = (self.merge_size * self.patch_size) ** 2
        patches = (policy.max_pixels or 0) // self.patch_size**2 or self.video_target_num_patches
        if patches < self.merge_size**2:
            raise ValueError(f"max_pixels={policy.max_pixels} is less than one token: give {cell}")
        return {"fps": policy.fps, "max_frames": policy.max_frames, "video_target_num_patches": patches}

    def sample_frames(self, header: Any, fps: float) -> list[int]:
        """`fps` frames a second, no more than `max_frames`, evenly from the first to the last."""
        total = header.total_num_frames
        count = max(1, min(self.max_frames, total, floor(total / header.fps * fps)))
        step = (total - 1) / max(1, count - 1)
        return [*(int(i * step) for i in range(count - 1)), total - 1 if count > 1 else 0]

    def resize(self, video: Tensor, **_: Any) -> Tensor:
        """An empty clip of the size that frames are brought to."""
        width, height = self._set()._compute_target_patches(*video.shape[-2:])
        return video.new_empty((*video.shape[:-2], height * self.patch_size, width * self.patch_size))

    def __call__(self, frames_TCHW: Tensor, video_metadata: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
        """pixel_values_videos [R, patch], video_grid_thw [1, 3] and the metadata."""
        metadata = {**video_metadata[0], "frames_indices": [float(i) for i in video_metadata[0]["frames_indices"]]}
        out = self._set()(frames_TCHW, video_metadata=[metadata], **ASKED, do_sample_frames=False, return_metadata=True)
        tubelets, side = out["pixel_values_videos"][0], self.patch_size
        grids, channels, height, width = tubelets.shape
        h, w = height // side, width // side
        patches = tubelets.view(grids, channels, h, side, w, side).permute(0, 2, 4, 1, 3, 5)
        return {
            "pixel_values_videos": patches.reshape(grids * h * w, -1),
            "video_grid_thw": torch.tensor([[grids, h, w]]),
            "video_metadata": out["video_metadata"],
        }

    def _set(self) -> Any:
        self.own.video_target_num_patches = self.video_target_num_patches
        return self.own


class NemotronImages:
    """The image processor."""

    size = NemotronVideos.size

    def __init__(self, processor: Any) -> None:
        self.own = processor

    def get_number_of_image_patches(self, height: int, width: int, _: Any) -> int:
        return len(self(torch.zeros(3, height, width, dtype=torch.uint8))["pixel_values"])

    def __call__(self, image_CHW: Tensor, **_: Any) -> dict[str, Tensor]:
        out = self.own(image_CHW, **ASKED)
        grids = out["image_grid_hw"]
        return {
            "pixel_values": out["pixel_values"],
            "image_grid_thw": torch.cat([torch.ones_like(grids[:, :1]), grids], dim=1),
        }
