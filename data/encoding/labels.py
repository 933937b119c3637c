"""Which tokens carry loss, and which answers a multiple-choice question offers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from data.types import IGNORE, RowError, Sample, Turn

OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*\S", re.MULTILINE)  # "A. foo", "(B) bar", "C) baz"
LETTER = re.compile(r"^\(?([A-Z])(?=[.):,]|\s*$)")  # an answer that names one
NO_THOUGHTS = ("<think>\n\n</think>\n\n", "<think></think>")  # as templates write them: Qwen's, Nemotron's


class Labeller:
    """Finds a chat's answers by the tokenizer's own special tokens; ChatML, as all Qwen families write it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        specials = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        if not {"<|im_start|>", "<|im_end|>"} <= specials.keys():
            raise ValueError("the tokenizer lacks <|im_start|> or <|im_end|>; use a checkpoint with a ChatML template")
        self.end = specials["<|im_end|>"]
        self.header = [specials["<|im_start|>"], *self.tokens("assistant\n")]
        self.no_thoughts = [self.tokens(thought) for thought in NO_THOUGHTS]
        self.special = re.compile("|".join(map(re.escape, specials)))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`tokens` of each text, by the tokenizer's own threads."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def check(self, sample: Sample) -> None:
        """RowError if text holds what the model would read as a special token."""
        for text in (part for turn in sample.turns for part in turn.parts if isinstance(part, str)):
            if found := self.special.search(text):
                raise RowError(f"{sample.id}: its text holds the special token {found[0]}; take it out")

    def labels(self, ids_N: Tensor, answers: int, where: str) -> Tensor:
        """[N] the ids of `answers` assistant answers, closing token included, IGNORE elsewhere; unshifted.

        The empty thought that the templates of thinking models write before an answer is theirs, not the answer's.
        RowError unless the tokens show that many; with 0, nothing is looked for (a prompt ends in an open header).
        """
        labels_N = torch.full_like(ids_N, IGNORE)
        spans = list(self._spans(ids_N.tolist())) if answers else []
        if len(spans) != answers:
            raise RowError(
                f"{where}: {answers} assistant turns but {len(spans)} answers found in its tokens; no answer may "
                "begin with a line break, and the chat template must be ChatML"
            )
        for begin, end in spans:
            labels_N[begin:end] = ids_N[begin:end]
        return labels_N

    def _spans(self, ids: list[int]) -> Iterator[tuple[int, int]]:
        width = len(self.header)
        for place, token in enumerate(ids):
            if token == self.header[0] and ids[place : place + width] == self.header:
                begin = place + width
                empty = (t for t in self.no_thoughts if ids[begin : begin + len(t)] == t)
                begin += len(next(empty, []))
                yield begin, ids.index(self.end, begin) + 1

    def choices(self, turns: Sequence[Turn]) -> tuple[tuple[int, ...], ...]:
        """Per assistant turn the first token of each option's letter, in the answer's own form; () if free-form."""
        before = [None, *turns]
        return tuple(
            self._offered(text_of(asked), text_of(turn)) if asked is not None and asked.role == "user" else ()
            for asked, turn in zip(before, turns)
            if turn.role == "assistant"
        )

    def _offered(self, question: str, answer: str) -> tuple[int, ...]:
        letters = list(dict.fromkeys(OPTION.findall(question)))
        named = LETTER.match(answer)
        if named is None or named[1] not in letters or len(letters) < 2:
            return ()
        before, after = answer[: named.start(1)], answer[named.end(1) :]
        first = tuple(self.tokens(f"{before}{letter}{after}")[0] for letter in letters)
        return first if len(set(first)) == len(letters) else ()  # "(A)" may begin with "(" whatever the letter


def text_of(turn: Turn) -> str:
    """The turn's text without its media."""
    return "\n".join(part for part in turn.parts if isinstance(part, str))
