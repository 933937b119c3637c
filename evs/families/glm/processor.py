"""GLM's processor with the interface that `data.encoding` calls."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any


class GlmProcessor:
    """The library's processor."""

    def __init__(self, processor: Any) -> None:
        self.own, self.tokenizer, self.chat_template = processor, processor.tokenizer, processor.chat_template
        self.video_token, self.image_token = processor.video_token, processor.image_token
        self.image_processor = processor.image_processor
        self.video_processor = GlmVideos(processor.video_processor)
        self.to_json_string, self.replace_image_token = processor.to_json_string, processor.replace_image_token

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The library's. A generation prompt with an empty thought also gets the line break before the answer."""
        text = self.own.apply_chat_template(messages, **options)
        return text + "\n" if text.endswith("</think>") else text

    def replace_video_token(self, video: Any, number: int) -> str:
        """The library's text for a video: a run of placeholders for every temporal grid, and its time in seconds."""
        metadata = video["video_metadata"][number]
        times = [index / metadata.fps for index in metadata.frames_indices]
        timed = {**video, "video_metadata": {number: SimpleNamespace(fps=metadata.fps, timestamps=times)}}
        return self.own.replace_video_token(timed, number)


class GlmVideos:
    """The video processor. It bounds the pixels of all frames of a video together, and has no limit for one frame."""

    cap_pixels_per_frame = False
    unsupported = ("nframes", "min_frames")  # settings of one video that its sampling does not know

    def __init__(self, processor: Any) -> None:
        self.own, self.resize = processor, processor.resize
        self.patch_size, self.temporal_patch_size = processor.patch_size, processor.temporal_patch_size
        self.merge_size, self.resample, self.size = processor.merge_size, processor.resample, processor.size
        self.image_mean, self.image_std = processor.image_mean, processor.image_std
        self.rescale_factor: float = processor.rescale_factor
        self.fps, self.max_duration = processor.fps, processor.max_duration

    def configuration(self, policy: Any) -> dict[str, Any]:
        """The entries of the processor's configuration that a policy decides. ValueError for a limit of one frame.

        A video longer than `max_duration` is sampled evenly, as many frames as that duration has.
        """
        if policy.max_pixels is not None:
            raise ValueError(f"max_pixels={policy.max_pixels}: GLM has no limit for one frame; set total_pixels")
        edges = (policy.min_pixels or self.size["shortest_edge"], policy.total_pixels or self.size["longest_edge"])
        size = dict(zip(("shortest_edge", "longest_edge"), edges))
        return {"fps": policy.fps, "max_duration": policy.max_frames / policy.fps, "size": size}

    def sample_frames(self, header: Any, fps: float) -> Any:
        """The library's places of frames, a list of ascending indices in which the last may recur."""
        own = copy.copy(self.own)
        own.max_duration = self.max_duration
        seconds = header.total_num_frames / header.fps
        return own.sample_frames(SimpleNamespace(**vars(header), duration=seconds), fps=fps)

    def __call__(self, frames_TCHW: Any, *, cap_pixels_per_frame: bool = False, **options: Any) -> Any:
        return self.own(frames_TCHW, **options)
