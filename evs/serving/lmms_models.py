"""The model behind our lmms-eval entry points: a stock checkpoint with pruning enabled, on frames as it was trained on.

Videos are decoded, sampled and sized as the checkpoint's own processor says, where an export has written what was
trained. Prompts are the chat template's; a task's stop strings are ignored, as by lmms-eval's own Qwen models.
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

from evs.policy import Policy, load_policy
from evs.transformers import enable_pruning

FRAMES = ("fps", "min_frames", "max_frames")


class Pruned(lmms):
    """`pruning_rate` is the fraction of video tokens removed; what is not given is as `evs.json` and the checkpoint's
    processor say. Raises ValueError for an argument that is none of these."""

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
        self.batch_size, policy = int(batch_size), load_policy(pretrained) or Policy()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self._world_size > 1 or device is None else torch.device(device)
        self.processor = hf.AutoProcessor.from_pretrained(pretrained, padding_side="left")
        _configure(self.processor.video_processor, policy, frames)
        load: Any = hf.AutoModelForImageTextToText.from_pretrained
        self.model = load(pretrained, dtype=dtype, attn_implementation=attn_implementation).to(self.device).eval()
        # Penalties of the checkpoint's generation_config would change greedy answers.
        ends = self.model.generation_config.eos_token_id
        self.model.generation_config = hf.GenerationConfig(eos_token_id=ends, pad_token_id=self.tokenizer.pad_token_id)
        enable_pruning(
            self.model,
            pruning_rate,
            method=method or policy.method,
            prune_at=policy.prune_at if method in (None, policy.method) else "merger",
            scheme=scheme or policy.scheme,
            scorer_dtype=policy.scorer_dtype,
            processor=self.processor,
        )

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        answers: list[GenerationResult] = []
        bar = tqdm(total=len(requests), disable=self._rank != 0, desc="Model Responding")
        for chunk in _chunks(requests, self.batch_size):
            inputs = self.inputs([self.chat(*request.args[1:2], *request.args[3:]) for request in chunk])
            out = self.model.generate(**inputs.to(self.device), **_settings(chunk[0].args[2]))
            for request, tokens in zip(chunk, out[:, inputs["input_ids"].shape[1] :]):
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                count = int((tokens != self.tokenizer.pad_token_id).sum())
                answers.append(GenerationResult(text, TokenCounts(output_tokens=count)))
                self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), text)
            bar.update(len(chunk))
        bar.close()
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("chat tasks are generated: use a generate_until task, or scripts/evaluate.py")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported: use a generate_until task")

    def chat(self, doc_to_messages: Any, doc_id: int, task: str, split: str) -> ChatMessages:
        """A document's question with its media."""
        return ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))

    def inputs(self, chats: Sequence[ChatMessages]) -> Any:
        """The processor's inputs of prompts that are open for the answer."""
        parts = [part for chat in chats for message in chat.messages for part in message.content]
        clips = [self.clip(part) for part in parts if part.type == "video"]
        messages = [chat.to_hf_messages() for chat in chats]
        return self.processor(
            text=self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
            images=[part.url for part in parts if part.type == "image"] or None,
            videos=[frames for frames, _ in clips] or None,
            video_metadata=[metadata for _, metadata in clips] or None,
            do_sample_frames=False,
            padding=True,
            return_tensors="pt",
        )

    def clip(self, part: Any) -> tuple[np.ndarray, VideoMetadata]:
        """A video's frames [T, H, W, C] and their places in it; a part of a video counts as a video of its own."""
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


def _configure(processor: Any, policy: Policy, given: dict[str, Any]) -> None:
    """Frames as given, else as trained. Sizes stay those of its own configuration, where an export writes them."""
    processor.num_frames = None
    for name in FRAMES:
        setattr(processor, name, given.get(name, getattr(policy, name)))


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
    settings = {"num_beams": asked.get("num_beams", 1), "max_new_tokens": asked.get("max_new_tokens", 128)}
    if not asked.get("temperature"):
        return settings
    sampling = {"temperature": float(asked["temperature"]), "top_p": asked.get("top_p") or 1.0, "top_k": 0}
    return settings | sampling | {"do_sample": True}
