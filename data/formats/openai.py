"""OpenAI messages.

    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", "video_start": 1.5, "video_end": 9},
                                               {"type": "image_url", "image_url": {"url": "b.png"}},
                                               {"type": "text", "text": "What moves?"}]},
                  {"role": "assistant", "content": "A dog."}]}

A content that is text may hold <video> and <image> marks for files listed in the row's "videos" and "images", as in
ms-swift and LLaMA-Factory. "video_start" / "video_end" are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats.conversation import Media, Part, finished, graded, image, role, text_of, turns_of, video
from data.formats.roots import Root
from data.formats.video_settings import refuse_picture_settings
from data.types import RowError, Sample, Turn

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample. RowError, naming `where`, if it cannot be used."""
    media = Media(row, root, where)
    turns = []
    for message in turns_of(row, "messages", where):
        name, content = role(message.get("role"), ROLES, where), message.get("content")
        if isinstance(content, list):
            parts = tuple(part for item in content for part in _parts(item, media, root, name))
        else:
            text = text_of(content, "a message's content", where)
            parts = media.split(text) if name == "user" else (text,)
        turns.append(Turn(name, parts))
    media.check_all_taken()
    return finished(Sample(str(row.get("id", where)), tuple(turns), **graded(row, where)), where)


def _parts(item: Any, media: Media, root: Root, name: str) -> tuple[Part, ...]:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text":
        text = text_of(item.get("text"), "a text part", media.where)
        return media.split(text) if name == "user" else (text,)
    if kind in ("video", "video_url"):
        inner = item.get(kind)
        entry = {**item, **inner} if isinstance(inner, Mapping) else {**item, "video": inner}
        return (video(entry, media.row, root, media.where),)
    if kind in ("image", "image_url"):
        refuse_picture_settings(item, media.where)
        return (image(item.get(kind), root, media.where),)
    raise RowError(f"{media.where}: content part of type {kind!r}; use text, video, video_url, image or image_url")
