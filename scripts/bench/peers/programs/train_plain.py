"""Full fine-tuning by transformers' own Trainer."""

from __future__ import annotations

import torch
from rows import Collator, Rows, arguments
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments


def main() -> None:
    given = arguments()
    model = AutoModelForImageTextToText.from_pretrained(
        given["model"], dtype=torch.float32, attn_implementation=given["attention"]
    )
    Trainer(
        model=model,
        args=TrainingArguments(remove_unused_columns=False, **given["training"]),
        train_dataset=Rows(given["rows"]),
        data_collator=Collator(AutoProcessor.from_pretrained(given["model"])),
    ).train()


if __name__ == "__main__":
    main()
