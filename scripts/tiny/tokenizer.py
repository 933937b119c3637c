"""The tokenizer of all tiny checkpoints: Qwen2's kind, of a few hundred tokens."""

from __future__ import annotations

import json
from typing import Any

import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SPECIALS: tuple[str, ...] = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
# Words that become one token each, with and without a space before them; all else is spelt in bytes.
WORDS = """
system user assistant You are a helpful assistant . ? : , the is was at in end of what What which Which that
how How many times did it first last left right top bottom color colour square ring lamp upper lower At moved blinked
red green blue yellow cyan magenta orange purple white black pink brown gray zero one two three four five
six seven eight nine ten yes no video image Describe happens person doing Answer with option letter directly
changed seconds
"""


def tokenizer(vocabulary: int, specials: tuple[str, ...] = SPECIALS) -> Any:
    """Byte-level BPE of the Qwen2 kind with at most `vocabulary` tokens, its merges learnt from WORDS."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = hf.Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator([text for word in WORDS.split() for text in (word, f" {word}")], trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learnt["merges"]]
    special_ids = {token: len(learnt["vocab"]) + i for i, token in enumerate(specials)}
    return hf.Qwen2Tokenizer(
        vocab=learnt["vocab"] | special_ids,
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens=list(specials),
        model_max_length=32768,
    )
