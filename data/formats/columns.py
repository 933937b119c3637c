"""Maps the column names of a data set to those of the formats, as LLaMA-Factory and ms-swift do.

    {"clip": "a.mp4", "dialog": [{"speaker": "human", "text": "<video>What?"}, {"speaker": "bot", "text": "A dog."}]}

is read by messages=dialog, videos=clip, role=speaker, content=text, user=human, assistant=bot; rows with one
question and one answer by query=question, response=answer. Marks and media are as in openai.py.
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
LAYOUTS = ("messages", "conversations")  # keys that data.columns.messages replaces
MARKS = {"videos": "<video>", "images": "<image>"}


@dataclass  # not frozen: it is a node of the configuration
class Columns:
    """Column names of the data; None: the data has no such column. `role` and below describe the turns.

    Without any column name, rows are unchanged.
    """

    messages: str | None = None  # column of the conversation, a list of turns
    query: str | None = None  # column of the question, with response, instead of messages
    response: str | None = None  # column of the answer, with query
    system: str | None = None  # column of the system prompt
    videos: str | None = None  # column of video paths
    images: str | None = None  # column of image paths
    id: str | None = None  # column of the row's id
    kind: str | None = None  # column of the kind of question
    metric: str | None = None  # column of the metric that grades the answer
    answers: str | None = None  # column of the accepted answers
    role: str = "role"  # key of a turn for its role
    content: str = "content"  # key of a turn for its text
    user: str = "user"  # value of the role in user turns
    assistant: str = "assistant"  # value of the role in assistant turns, which are learned
    system_role: str = "system"  # value of the role in system turns

    @property
    def named(self) -> dict[str, str]:
        """Format key -> column name of the data."""
        return {key: column for key in COLUMNS if (column := getattr(self, key)) is not None}

    def check(self) -> None:
        """Raise ValueError if the names do not include exactly one conversation."""
        conversation = tuple(name for name in CONVERSATION if name in self.named)
        if self.named and conversation not in (("messages",), ("query", "response")):
            raise ValueError(f"data.columns names {', '.join(self.named)}: give messages, or query and response")

    def rename(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The row with the keys of the formats: OpenAI messages, or query and response; other keys are unchanged.

        Raises RowError, naming `where`, if a required column is missing: that of the conversation, or of media whose
        marks occur in it.
        """
        named = self.named
        renamed = {key: row[column] for key, column in named.items() if column in row}
        for key in named.keys() - renamed.keys():
            if key in CONVERSATION or MARKS.get(key, "\0") in str([renamed.get(name) for name in CONVERSATION]):
                raise RowError(
                    f"{where}: has no column {named[key]!r}, which data.columns.{key} names; it has {sorted(row)}"
                )
        rest = {key: value for key, value in row.items() if key not in named.values() and key not in LAYOUTS}
        for key in set(COLUMNS) - {"messages", "id"}:
            if key in renamed and rest.get(key, "") not in (None, "", [], renamed[key]):
                raise RowError(f"{where}: has {key!r} and {named[key]!r}, which data.columns.{key} names; keep one")
        if self.messages is not None:
            return rest | renamed | {"messages": self._turns(renamed, where)}
        return rest | renamed

    def _turns(self, row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        roles = {self.user: "user", self.assistant: "assistant", self.system_role: "system"}
        turns = []
        for turn in turns_of(row, "messages", where):
            name = text_of(turn.get(self.role), f"a turn's {self.role!r}", where)
            if name not in roles:
                raise RowError(f"{where}: unknown role {name!r}; data.columns names {', '.join(roles)}")
            own = {"role": roles[name], "content": turn.get(self.content)}
            rest = {key: value for key, value in turn.items() if key not in (self.role, self.content)}
            if unread := next((key for key in own if rest.get(key) not in (None, "")), None):
                raise RowError(f"{where}: a turn has {unread!r}, which data.columns.{unread} does not name; remove it")
            turns.append(rest | own)
        return turns
