"""The model behind our lmms-eval entry points: a checkpoint read at a pruning rate, on frames as it was trained on.

Videos are decoded, sampled and sized as the checkpoint's own processor says, where an export has written what was
trained. Prompts are the chat template's; a task's stop strings are left aside, as by lmms-eval's own Qwen models.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers as hf
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm
from transformers.video_utils import VideoMetadata, load_video

from evs.families import adapter_for, spec_of
from evs.generate import generate
from evs.methods import method_named
from evs.pipeline import check_place
from evs.policy import Policy, load_policy
from evs.prompts import PackedPrompts
from evs.selection import check_rate

FRAMES = ("fps", "min_frames", "max_frames")


class Pruned(lmms):
    """`pruning_rate` is the fraction of video tokens removed; what is not given is as `evs.json` and the checkpoint's
    processor say. ValueError for an argument that is none of these."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        *,
        pruning_rate: float = 0.0,
        scheme: str | None = None,
        method: str | None = None,
        dtype: str = "bfloat16",
        attn_implementation: str = "sdpa",
        device: str | None = None,
        batch_size: int = 1,
        max_batch_size: int | None = None,
        **frames: Any,
    ) -> None:
        super().__init__()
        if unknown := frames.keys() - {*FRAMES}:
            known = ("pruning_rate", "scheme", "method", "dtype", "attn_implementation", *FRAMES)
            raise ValueError(f"--model_args {min(unknown)}= is unknown: use pretrained, {', '.join(known)}")
        self.rate, self.batch_size = check_rate(pruning_rate), int(batch_size)
        policy = load_policy(pretrained) or Policy()
        spec_of(hf.AutoConfig.from_pretrained(pretrained, trust_remote_code=False))  # None would ask at the terminal
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self._world_size > 1 or device is None else torch.device(device)
        self.processor = hf.AutoProcessor.from_pretrained(pretrained, trust_remote_code=False)
        _configure(self.processor.video_processor, policy, frames)
        load: Any = hf.AutoModelForImageTextToText.from_pretrained
        self.model = load(pretrained, dtype=dtype, attn_implementation=attn_implementation).to(self.device).eval()
        self.adapter = adapter_for(self.model, scheme or policy.scheme)
        place = policy.prune_at if method in (None, policy.method) else "merger"
        self.method = method_named(method or policy.method, dtype, place)
        check_place(self.adapter, self.method)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        answers: list[GenerationResult] = []
        bar = tqdm(total=len(requests), disable=self._rank != 0, desc="Model Responding")
        for chunk in _chunks(requests, self.batch_size):
            prompts = pack([self.prompt(*request.args[1:2], *request.args[3:]) for request in chunk])
            settings = _settings(chunk[0].args[2])
            written = generate(self.model, self.adapter, prompts, self.rate, method=self.method, **settings)
            for request, out in zip(chunk, written):
                text = self.tokenizer.decode(out.tokens, skip_special_tokens=True)
                answers.append(GenerationResult(text, TokenCounts(output_tokens=len(out.tokens))))
                self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), text)
            bar.update(len(chunk))
        bar.close()
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("chat tasks are generated: use a generate_until task, or scripts/evaluate.py")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported: use a generate_until task")

    def prompt(self, doc_to_messages: Any, doc_id: int, task: str, split: str) -> PackedPrompts:
        """A document's question with its media, open for the answer."""
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        parts = [part for message in chat.messages for part in message.content]
        clips = [self.clip(part) for part in parts if part.type == "video"]
        text = self.processor.apply_chat_template(chat.to_hf_messages(), tokenize=False, add_generation_prompt=True)
        inputs = self.processor(
            text=[text],
            images=[part.url for part in parts if part.type == "image"] or None,
            videos=[frames for frames, _ in clips] or None,
            video_metadata=[metadata for _, metadata in clips] or None,
            do_sample_frames=False,
            return_tensors="pt",
        )
        seconds = [self.processor.video_processor.temporal_patch_size / _sampled_fps(each) for _, each in clips]
        rule = self.processor.video_processor
        videos = [part.type == "video" for part in parts if part.type in ("video", "image")]
        return _prompt(inputs, seconds, videos, (tuple(rule.image_mean), tuple(rule.image_std)))

    def clip(self, part: Any) -> tuple[np.ndarray, VideoMetadata]:
        """A video's frames [T, H, W, C] and where they stand in it; a part of it counts as a video of its own."""
        first, total = 0, 0

        def places(metadata: Any, **_: Any) -> np.ndarray:
            nonlocal first, total
            first = round((part.start_time or 0) * metadata.fps)
            end = metadata.total_num_frames if part.end_time is None else round(part.end_time * metadata.fps)
            total = min(end, metadata.total_num_frames) - first
            rule = self.processor.video_processor
            within = rule.sample_frames(SimpleNamespace(total_num_frames=total, fps=metadata.fps), fps=rule.fps)
            return first + np.unique(np.asarray(within, dtype=np.int64).clip(max=total - 1))

        load: Any = load_video  # its annotations leave out paths
        frames, metadata = load(str(part.url), backend="pyav", sample_indices_fn=places)
        metadata.total_num_frames = total
        return frames, metadata


def pack(prompts: Sequence[PackedPrompts]) -> PackedPrompts:
    """The prompts end to end."""

    def joined(name: str) -> Any:
        values = [value for prompt in prompts if (value := getattr(prompt, name)) is not None]
        return torch.cat(values) if values else None

    fields = {name: joined(name) for name in PackedPrompts.__dataclass_fields__ if not name.endswith("_normal")}
    lengths = torch.tensor([len(prompt.input_ids_N) for prompt in prompts])
    segment_N = torch.arange(len(prompts)).repeat_interleave(lengths)
    return PackedPrompts(**fields | {"segment_N": segment_N}, video_normal=prompts[0].video_normal)


def _prompt(inputs: Any, seconds: Sequence[float], videos: Sequence[bool], normal: Any) -> PackedPrompts:
    ids_N, none = inputs["input_ids"][0], torch.zeros(0, 3, dtype=torch.long)
    return PackedPrompts(
        input_ids_N=ids_N,
        labels_N=torch.full_like(ids_N, -100),
        segment_N=torch.zeros_like(ids_N),
        pixel_values_videos=inputs.get("pixel_values_videos"),
        video_grid_thw_V3=inputs.get("video_grid_thw", none),
        second_per_grid_V=torch.tensor(seconds, dtype=torch.float64),
        pixel_values=inputs.get("pixel_values"),
        image_grid_thw_I3=inputs.get("image_grid_thw", none),
        video_M=torch.tensor(videos, dtype=torch.bool),
        video_normal=normal,
    )


def _configure(processor: Any, policy: Policy, given: dict[str, Any]) -> None:
    """Frames as given, else as trained. Sizes stay those of its own configuration, where an export writes them."""
    processor.num_frames = None
    for name in FRAMES:
        setattr(processor, name, given.get(name, getattr(policy, name)))


def _sampled_fps(metadata: Any) -> float:
    return len(metadata.frames_indices) / metadata.total_num_frames * metadata.fps


def _chunks(requests: Sequence[Instance], size: int) -> list[list[Instance]]:
    """Requests in order, in lists of at most `size` that are to be answered alike."""
    chunks: list[list[Instance]] = []
    for request in requests:
        if chunks and len(chunks[-1]) < size and chunks[-1][0].args[2] == request.args[2]:
            chunks[-1].append(request)
        else:
            chunks.append([request])
    return chunks


def _settings(asked: dict[str, Any]) -> dict[str, Any]:
    """A task's generation_kwargs: greedy, unless it asks for a temperature."""
    temperature, settings = asked.get("temperature"), {"num_beams": asked.get("num_beams", 1), "top_k": 0}
    if temperature:
        settings |= {"do_sample": True, "temperature": float(temperature), "top_p": asked.get("top_p") or 1.0}
    return settings | {"max_new_tokens": asked.get("max_new_tokens", 128)}
