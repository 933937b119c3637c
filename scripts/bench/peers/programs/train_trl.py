"""Full fine-tuning by TRL's SFTTrainer; its collator takes images but no videos, so it is given one."""

from __future__ import annotations

import torch
from datasets import Dataset
from rows import Collator, Rows, arguments
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer


def main() -> None:
    given = arguments()
    model = AutoModelForImageTextToText.from_pretrained(
        given["model"], dtype=torch.float32, attn_implementation=given["attention"]
    )
    processor = AutoProcessor.from_pretrained(given["model"])
    SFTTrainer(
        model=model,
        args=SFTConfig(
            remove_unused_columns=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            **given["training"],
        ),
        train_dataset=Dataset.from_list(list(Rows(given["rows"]))),
        data_collator=Collator(processor),
        processing_class=processor,
    ).train()


if __name__ == "__main__":
    main()
