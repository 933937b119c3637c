"""OpenAI messages.

    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", "video_start": 1.5, "video_end": 9},
                                               {"type": "image_url", "image_url": {"url": "b.png"}},
                                               {"type": "text", "text": "What moves?"}]},
                  {"role": "assistant", "content": "A dog."}]}

A content that is text may hold <video> and <image> marks for files listed in the row's "videos" and "images", as in
ms-swift and LLaMA-Factory, and a part without a file, {"type": "video"}, takes the next one, as in TRL. A part names
its file by its type, "path" or "url", or holds it as "bytes". "video_start" / "video_end" are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats.conversation import ContentPart, Media, image, role, sample_of, text_of, turns_of, video
from data.formats.keys import check_part, is_learned
from data.formats.roots import Root
from data.types import RowError, Sample, Turn

OWN = ("role", "content")  # keys of a turn
KINDS = ("text", "video", "video_url", "image", "image_url")
ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample. RowError, naming `where`, if it cannot be used."""
    media = Media(row, root, where)
    turns = []
    for number, message in enumerate(turns_of(row, "messages", where), 1):
        name = role(message.get("role"), ROLES, where)
        learned = is_learned(message, name, OWN, f"{where}: turn {number}")
        content = message.get("content")
        if isinstance(content, list):
            parts = tuple(part for item in content for part in _parts(item, media, root, name))
        else:
            text = text_of(content, "a message's content", where)
            parts = media.split(text) if name == "user" else (text,)
        turns.append(Turn(name, parts, learned))
    media.check_all_taken()
    return sample_of(row, turns, where)


def _parts(item: Any, media: Media, root: Root, name: str) -> tuple[ContentPart, ...]:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in KINDS:
        raise RowError(f"{media.where}: content part of type {kind!r}; use {', '.join(KINDS)}")
    kind = kind.removesuffix("_url")
    for key in KINDS:
        if not key.startswith(kind) and item.get(key) not in (None, ""):
            raise RowError(f'{media.where}: content part of type {kind} has "{key}" too; write two parts')
    if kind == "text":
        check_part(item, ("type", "text"), media.where)
        text = text_of(item.get("text"), "a text part", media.where)
        return media.split(text) if name == "user" else (text,)
    return (_medium(kind, item, media, root),)


def _medium(kind: str, item: Mapping[str, Any], media: Media, root: Root) -> ContentPart:
    """The medium that a content part names, or the next one that the row lists."""
    keys = {f"{kind}_url": "url", kind: kind}
    entry = {key: value for key, value in item.items() if key not in keys}
    for key, name in keys.items():
        inner = item.get(key)
        if inner not in (None, ""):
            entry |= inner if isinstance(inner, Mapping) else {name: inner}
    if all(entry.get(key) in (None, "") for key in (kind, "path", "url", "bytes", "frames")):
        return media.take(kind, entry)
    return video(entry, media.row, root, media.where) if kind == "video" else image(entry, root, media.where)
