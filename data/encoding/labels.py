"""Labels (the tokens that carry loss), and the options that a multiple-choice question offers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.types import IGNORE, RowError, Sample, Turn

OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*\S", re.MULTILINE)  # "A. foo", "(B) bar", "C) baz"
LETTER = re.compile(r"^\(?([A-Z])(?=[.):,]|\s*$)")  # an answer that names an option


@dataclass(frozen=True)
class ChatMarkers:
    """How a chat template delimits answers. The defaults are ChatML's."""

    header: str = "<|im_start|>assistant\n"  # before an answer; begins with a special token
    ends: tuple[str, ...] = ("<|im_end|>",)  # special tokens that end an answer
    closing: str = ""  # what to append to a conversation, for templates that do not end its last answer

    @property
    def special(self) -> set[str]:
        """The special tokens among them."""
        return {*self.ends, self.header[: self.header.index(">") + 1]}


CHATML = ChatMarkers()


class Labeller:
    """Finds a chat's answers by the special tokens of its template.

    `opening` is what the generation prompt writes after the header, as the empty thought of a thinking model.
    """

    def __init__(self, tokenizer: Any, opening: str = "", chat: ChatMarkers = CHATML) -> None:
        self.tokenizer = tokenizer
        specials = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        if missing := chat.special - specials.keys():
            raise ValueError(
                f"the tokenizer lacks {min(missing)}; use a checkpoint whose chat template writes "
                f"{chat.header!r} before an answer"
            )
        self.chat = chat
        self.ends = {specials[end] for end in chat.ends}
        self.header = self.tokens(chat.header)
        self.opening = self.tokens(opening)
        self.special = re.compile("|".join(map(re.escape, specials)))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, computed in the tokenizer's own threads."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def check(self, sample: Sample) -> None:
        """Raise RowError if the text contains a special token, also one that spans text parts."""
        for turn in sample.turns:
            text = "".join(part if isinstance(part, str) else "\n" for part in turn.parts)
            if match := self.special.search(text):
                raise RowError(f"{sample.id}: its text contains the special token {match[0]}; remove it")

    def labels(self, ids_N: Tensor, learned: Sequence[bool], where: str) -> Tensor:
        """[N] the ids of the assistant turns that are `learned`, closing token included, IGNORE elsewhere; unshifted.

        What the template's generation prompt writes before an answer carries no loss. RowError unless the tokens show
        one answer for each entry of `learned`; without any, nothing is looked for (a prompt ends in an open header).
        """
        labels_N = torch.full_like(ids_N, IGNORE)
        spans = list(self._spans(ids_N.tolist())) if learned else []
        if len(spans) != len(learned):
            raise RowError(
                f"{where}: {len(learned)} assistant turns but {len(spans)} answers found in its tokens; no answer may "
                f"begin with a line break, and the chat template must write {self.chat.header!r} before it"
            )
        for begin, end in (span for span, labelled in zip(spans, learned) if labelled):
            labels_N[begin:end] = ids_N[begin:end]
        return labels_N

    def _spans(self, ids: list[int]) -> Iterator[tuple[int, int]]:
        width = len(self.header)
        for index, token in enumerate(ids):
            if token == self.header[0] and ids[index : index + width] == self.header:
                begin = index + width
                if ids[begin : begin + len(self.opening)] == self.opening:
                    begin += len(self.opening)
                end = next((i for i in range(begin, len(ids)) if ids[i] in self.ends), None)
                if end is not None:
                    yield begin, end + 1

    def choices(self, turns: Sequence[Turn]) -> tuple[tuple[int, ...], ...]:
        """Per learned turn the first token of each option's letter, in the answer's own form; () if free-form."""
        questions = [None, *turns]
        return tuple(
            self._option_tokens(text_of(question), text_of(turn))
            if question is not None and question.role == "user"
            else ()
            for question, turn in zip(questions, turns)
            if turn.is_target
        )

    def _option_tokens(self, question: str, answer: str) -> tuple[int, ...]:
        letters = list(dict.fromkeys(OPTION.findall(question)))
        named = LETTER.match(answer)
        if named is None or named[1] not in letters or len(letters) < 2:
            return ()
        before, after = answer[: named.start(1)], answer[named.end(1) :]
        first = tuple(self.tokens(f"{before}{letter}{after}")[0] for letter in letters)
        return first if len(set(first)) == len(letters) else ()  # "(A)" and "(B)" may share their first token, "("


def check_rendered(sample: Sample, chat: str) -> None:
    """Raise RowError if the chat template has dropped text of the row. Whitespace may differ."""
    rendered, position = "".join(chat.split()), 0
    for number, turn in enumerate(sample.turns, 1):
        for text in ("".join(part.split()) for part in turn.parts if isinstance(part, str)):
            position = rendered.find(text, position) + len(text)
            if position < len(text):
                raise RowError(
                    f"{sample.id}: the chat template drops text of turn {number} ({turn.role}), such as the "
                    "thought of an earlier answer; remove it, or end the row with that answer"
                )


def text_of(turn: Turn) -> str:
    """The turn's text without its media."""
    return "\n".join(part for part in turn.parts if isinstance(part, str))
