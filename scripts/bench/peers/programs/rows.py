"""Rows of video conversations and the collator that a user of transformers' Trainer writes for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.video_utils import load_video

IGNORE = -100


class Rows(Dataset[dict[str, Any]]):
    """JSONL of {"messages": [...], "videos": [...]} as transformers' conversations and a path."""

    def __init__(self, path: str) -> None:
        self.rows = [json.loads(line) for line in Path(path).read_text().splitlines()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self.rows[place]
        question, answer = (message["content"] for message in row["messages"])
        asked = [{"type": "video"}, {"type": "text", "text": question.removeprefix("<video>")}]
        turns = {"user": asked, "assistant": [{"type": "text", "text": answer}]}
        messages = [{"role": role, "content": content} for role, content in turns.items()]
        return {"video": row["videos"][0], "messages": messages}


class Collator:
    """Conversations to padded tensors, in a worker; the answers and what ends them are labelled."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.header = processor.tokenizer("<|im_start|>assistant\n")["input_ids"]
        self.end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        texts = [self.processor.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        videos, metadata = zip(*(load_video(row["video"], fps=2, backend="pyav") for row in rows))
        batch = self.processor(
            text=texts,
            videos=list(videos),
            video_metadata=list(metadata),
            do_sample_frames=False,
            padding=True,
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], IGNORE)
        for ids, row in zip(batch["input_ids"].tolist(), labels):
            for begin in self._answers(ids):
                end = ids.index(self.end, begin) + 1
                row[begin:end] = torch.tensor(ids[begin:end])
        return {**batch, "labels": labels}

    def _answers(self, ids: list[int]) -> list[int]:
        width = len(self.header)
        return [i + width for i in range(len(ids)) if ids[i : i + width] == self.header]


def arguments() -> dict[str, Any]:
    """This program's only argument, a JSON object: model, rows, attention, and `training`, as TrainingArguments has."""
    return json.loads(Path(sys.argv[1]).read_text())
