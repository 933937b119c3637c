"""Video files, read by the encoder of training and by vLLM's own loader, and compared stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.collate import collate
from data.encoding.encoder import Encoder
from data.media.frames import FramePolicy
from data.types import Clip, MediaError, Sample, Turn, VideoRef
from scripts.serving.compare import Verdict, compare
from scripts.serving.loading import to_bytes
from scripts.serving.ours import Answer
from scripts.serving.prompts import Prompt
from train.model import encoder_of

QUESTION = "What happens in the video?"
MAX_PIXEL_GAP = 1  # of 255: two versions of a library may round differently


def prepare(model: str, videos: Sequence[str], policy: FramePolicy) -> tuple[list[Prompt], dict[str, Verdict]]:
    """(a prompt for every file that training can use, a verdict on every other file)."""
    encoder = encoder_of(model, policy)
    prompts, refused = [], {}
    for path in videos:
        try:
            prompts.append(_prompt(path, encoder))
        except MediaError as error:
            refused[path] = Verdict("not trained on", agrees=True, error=str(error), compared=False)
    return prompts, refused


def _prompt(path: str, encoder: Encoder) -> Prompt:
    sample = Sample(path, (Turn("user", (VideoRef(path), QUESTION)),))
    clips, _ = encoder.read(sample)
    encoding = encoder.encode_clips(sample, clips, [], generate=True)
    assert encoding.pixel_values_videos is not None
    url = Path(path).resolve().as_uri()
    normal = {"mean": encoder.video_processor.image_mean, "std": encoder.video_processor.image_std}
    return Prompt(
        name=path,
        batch=collate([encoding], filler_token=0),
        request={"name": path, "url": url, "question": QUESTION, "pixels": path, "normal": normal},
        media={path: to_bytes(encoding.pixel_values_videos.numpy(), **normal)},
        clip=replace(clips[0], frames_THWC=clips[0].frames_THWC[:0]),  # its pixels are in the batch
    )


def compare_file(prompt: Prompt, ours: Answer, theirs: dict[str, Any], tolerance: float) -> Verdict:
    """The verdict on one clip. If it differs, the text begins with the first stage that does."""
    verdict = compare(ours, theirs, tolerance)
    if "seen" not in theirs:
        return verdict
    assert prompt.clip is not None
    if fault := _mismatch(prompt.clip, prompt.batch.video_grid_thw_V3.tolist(), theirs["seen"]):
        return replace(verdict, text=fault, agrees=False)
    if verdict.agrees or verdict.error:
        return verdict
    if "tokens, not" in verdict.text:
        return replace(verdict, text=f"prompt: {verdict.text}")
    stage = "kept tokens" if ours.choice.gap else "positions" if "moved" in verdict.text else "log-probabilities"
    return replace(verdict, text=f"{stage}: {verdict.text}")


def _mismatch(clip: Clip, grids: list[list[int]], seen: dict[str, Any]) -> str:
    """The first of frames, times, grid and pixels that differs; empty if all are equal."""
    indices = clip.frame_indices_T.tolist()
    if seen["indices"] != indices:
        theirs = seen["indices"]
        first = next((i for i, (a, b) in enumerate(zip(indices, theirs)) if a != b), min(len(indices), len(theirs)))
        return f"frames: {len(theirs)}, not {len(indices)}; the first that differs is number {first}"
    if (seen["fps"], seen["frames"]) != (clip.fps, clip.frames):
        return f"times: {seen['frames']} frames at {seen['fps']:g} fps, not {clip.frames} at {clip.fps:g}"
    if seen["grids"] != grids:
        return f"grid: {seen['grids']}, not {grids}"
    return f"pixels: differ by up to {seen['pixels']:g} of 255" if seen["pixels"] > MAX_PIXEL_GAP else ""
