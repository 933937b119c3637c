"""Full fine-tuning by transformers' Trainer or TRL's SFTTrainer, with the dataset and the collator that their user
writes for rows of video conversations.

The argument is a JSON file: trainer, model, rows, attention, and training (fields of TrainingArguments).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pruning import callbacks
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from transformers.video_utils import load_video

IGNORE = -100


def conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of {"messages": [...], "videos": [...]} in the form that transformers' chat templates take."""
    question, answer = (message["content"] for message in row["messages"])
    user = [{"type": "video"}, {"type": "text", "text": question.removeprefix("<video>")}]
    turns = {"user": user, "assistant": [{"type": "text", "text": answer}]}
    return {"video": row["videos"][0], "messages": [{"role": role, "content": turn} for role, turn in turns.items()]}


class Collator:
    """Conversations to padded tensors, in a worker; the answer and the token that ends it are labelled."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.begin, self.end = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        texts = [self.processor.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        videos, metadata = zip(*(load_video(row["video"], fps=2, backend="pyav") for row in rows))
        media = {"videos": list(videos), "video_metadata": list(metadata), "do_sample_frames": False}
        batch = self.processor(text=texts, padding=True, return_tensors="pt", **media)
        labels = torch.full_like(batch["input_ids"], IGNORE)
        for ids_N, labels_N in zip(batch["input_ids"], labels):
            answer = int((ids_N == self.begin).nonzero()[-1]) + 3  # after "<|im_start|>assistant\n"
            end = int((ids_N == self.end).nonzero()[-1]) + 1
            labels_N[answer:end] = ids_N[answer:end]
        return {**batch, "labels": labels}


def main() -> None:
    arguments = json.loads(Path(sys.argv[1]).read_text())
    model = AutoModelForImageTextToText.from_pretrained(
        arguments["model"], dtype=torch.float32, attn_implementation=arguments["attention"]
    )
    processor = AutoProcessor.from_pretrained(arguments["model"])
    rows: Any = [conversation(json.loads(line)) for line in Path(arguments["rows"]).read_text().splitlines()]
    training = arguments["training"] | {"remove_unused_columns": False}
    if arguments["trainer"] == "trl":  # its own collator takes images, but no videos
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        rows, keys = Dataset.from_list(rows), {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        kind, settings = SFTTrainer, SFTConfig(**training, **keys)
    else:
        kind, settings = Trainer, TrainingArguments(**training)
    trainer: Any = kind(model, settings, Collator(processor), rows, processing_class=processor, callbacks=callbacks())
    trainer.train()


if __name__ == "__main__":
    main()
