"""Rows whose columns have other names, given the names: LLaMA-Factory's and ms-swift's mapping.

    {"clip": "a.mp4", "dialog": [{"speaker": "human", "text": "<video>What?"}, {"speaker": "bot", "text": "A dog."}]}

is read with messages=dialog, videos=clip, role=speaker, content=text, user=human, assistant=bot; rows with one
question and one answer with query=question, response=answer. Marks and media are as in openai.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.formats.conversation import text_of, turns_of
from data.types import RowError

CONVERSATION = ("messages", "query", "response")
GRADING = ("kind", "metric", "answers")
COLUMNS = (*CONVERSATION, "system", "videos", "images", "id", *GRADING)
LAYOUTS = ("messages", "conversations")  # that a named column replaces
MARKS = {"videos": "<video>", "images": "<image>"}


@dataclass  # not frozen: it is a node of the configuration
class Columns:
    """Names in the data, None for a column that it has not; `role` and below name what a turn is made of.

    With no column named, rows are left as they are.
    """

    messages: str | None = None  # column of the conversation
    query: str | None = None  # with response, in place of messages
    response: str | None = None  # column of the answer, where it stands apart
    system: str | None = None  # a text before the first turn
    videos: str | None = None  # column of video paths
    images: str | None = None  # column of image paths
    id: str | None = None  # column of the name of a row
    kind: str | None = None  # of question; this and the two below otherwise stand under their own names
    metric: str | None = None  # column of how an answer is graded
    answers: str | None = None  # column of all right answers
    role: str = "role"  # key of a turn that names who speaks
    content: str = "content"  # key of a turn that holds its text
    user: str = "user"  # values of the role
    assistant: str = "assistant"  # the role whose turns are learned
    system_role: str = "system"  # the role of instructions

    @property
    def named(self) -> dict[str, str]:
        """Our name -> the data's."""
        return {name: theirs for name in COLUMNS if (theirs := getattr(self, name)) is not None}

    def check(self) -> None:
        """Raise ValueError for names among which there is no conversation."""
        conversation = tuple(name for name in CONVERSATION if name in self.named)
        if self.named and conversation not in (("messages",), ("query", "response")):
            raise ValueError(f"data.columns names {', '.join(self.named)}: give messages, or query and response")

    def rename(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """`row` under our names: OpenAI messages, or query and response; what is not named keeps its name.

        RowError, naming `where`, if a column is missing that the row needs: that of its conversation, and of the media
        whose marks stand in it.
        """
        named = self.named
        found = {ours: row[theirs] for ours, theirs in named.items() if theirs in row}
        for ours in named.keys() - found.keys():
            if ours in CONVERSATION or MARKS.get(ours, "\0") in str([found.get(key) for key in CONVERSATION]):
                raise RowError(
                    f"{where}: has no column {named[ours]!r}, which data.columns.{ours} names; it has {sorted(row)}"
                )
        rest = {key: value for key, value in row.items() if key not in named.values() and key not in LAYOUTS}
        for ours in ("system", "videos", "images", "query", "response"):
            if ours in found and rest.get(ours, "") not in (None, "", [], found[ours]):
                raise RowError(f"{where}: has {ours!r} and {named[ours]!r}, which data.columns.{ours} names; keep one")
        if self.messages is not None:
            return rest | found | {"messages": self._turns(found, where)}
        return rest | found

    def _turns(self, found: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        roles = {self.user: "user", self.assistant: "assistant", self.system_role: "system"}
        turns = []
        for turn in turns_of(found, "messages", where):
            name = text_of(turn.get(self.role), f"a turn's {self.role!r}", where)
            if name not in roles:
                raise RowError(f"{where}: unknown role {name!r}; data.columns names {', '.join(roles)}")
            rest = {key: value for key, value in turn.items() if key not in (self.role, self.content)}
            turns.append(rest | {"role": roles[name], "content": turn.get(self.content)})
        return turns
