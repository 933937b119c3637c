"""Handling of the keys of rows and turns that have a meaning in other trainers.

Such a key is honoured, or the row is refused with the name of the key. Empty values (null, "", an empty list or object)
are allowed. Keys are compared without case, "_" and "-". All other keys are metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from data.types import RowError

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")  # honoured: the system prompt of the row
WEIGHTS = (  # honoured with 0, 1, false and true: whether the turn carries loss
    *("weight", "loss", "loss_mask", "loss_weight", "loss_scale", "compute_loss", "calculate_loss", "use_loss"),
    *("train", "training", "trainable", "train_on", "train_on_turn", "learn", "learnable", "supervise", "supervised"),
)
NEGATED = ("masked", "ignore", "ignored", "ignore_loss", "skip_loss", "no_loss", "no_train")  # the same, negated
DEFAULTS = ("weight", "loss", "loss_weight", "loss_scale")  # 1 is their default, and allowed on user turns
DUPLICATES = (
    "prompt",
    "query",
    "instruction",
    "input",
    "response",
    "output",
    "completion",
)  # allowed if equal to the text of a turn

AUDIO = "audio is not supported; remove the key or convert the row"
BOXES = "grounding placeholders are not filled in; write the coordinates into the text"
CHANNEL = 'losses are not counted by channel; remove the key, or name it "kind" to evaluate by it'
CLIP = 'use "video_start" and "video_end", in seconds'
LISTED = 'list the row\'s media under "videos" and "images", with one mark for each in the text'
PAIRS = "preference pairs and labels are not trained; keep the answer to be learned and remove the key"
TEMPLATE = "the chat template takes no such setting per row; remove the key"
THOUGHT = "write the thought into the answer's text, as <think>...</think>"
TOKENS = "rows are tokenized here; give text only"
TOOLS = "tool calls are not rendered; write them into the text as the chat template does"
WEIGHT = 'give 0 or 1 as "weight" of the assistant turns that it concerns'

EVERYWHERE = {
    AUDIO: ("audio", "audios", "audio_path", "audio_paths", "audio_url", "input_audio", "sound", "sounds", "speech"),
    BOXES: ("objects", "bbox", "bboxes", "boxes", "ref"),
    CHANNEL: ("channel",),
    PAIRS: (
        *("rejected", "rejected_response", "rejected_responses", "rejected_messages", "rejected_images"),
        *("rejected_videos", "chosen", "chosen_response", "chosen_messages", "positive_messages", "negative_messages"),
        *("kto_tag", "label", "labels", "margin", "completions"),
    ),
    THOUGHT: (
        "reasoning_content",
        "reasoning",
        "reasoning_details",
        "thinking",
        "thinking_blocks",
        "thought",
        "thoughts",
    ),
    TOOLS: ("tools", "tool_calls", "tool_call", "tool_call_id", "tool_choice", "functions", "function_call"),
    WEIGHT: (
        *("mask", "masks", "sample_weight", "instance_weight", "example_weight"),
        *("mask_history", "train_on_inputs", "train_on_input", "train_on_prompt"),
    ),
}
ROW = EVERYWHERE | {
    CLIP: ("start", "end", "start_time", "end_time", "start_sec", "end_sec", "clip_start", "clip_end"),
    LISTED: ("video_path", "video_paths", "video_url", "video_file", "image_path", "image_paths", "image_url", "media"),
    TEMPLATE: ("chat_template", "chat_template_kwargs", "documents", "enable_thinking", "parallel_tool_calls"),
    TOKENS: ("input_ids", "attention_mask", "assistant_masks", "completion_mask", "pixel_values"),
    "history is honoured in query/response rows only; write its turns into the conversation": ("history",),
}
TURN = EVERYWHERE | {
    LISTED: ("video", "videos", "image", "images", "video_url", "image_url", "media", "files", "attachments"),
    "the name of a speaker is not rendered; write it into the text": ("name",),
    "write the refusal as the turn's text": ("refusal",),
    "an answer cannot be given in part; write it whole": ("prefix", "prefill", "partial"),
    "give one system prompt for the row": ("system", "system_prompt"),
    "a turn has one role and one text": ("role", "content", "from", "value", "text"),
}
PART = EVERYWHERE | {CLIP: ROW[CLIP]}  # content parts and the entries of a row's lists of media
WEIGHTY = re.compile(r"loss|weight|train|mask|learn|supervis")  # pattern of further keys of turns
WEIGHTY_ROW = re.compile(r"(loss|weight|mask)s?$")


def system_of(row: Mapping[str, Any], where: str) -> str | None:
    """The system prompt that a row gives outside its turns. Raises RowError if it is not text or there are two."""
    prompts = {key: value for key, value in row.items() if _plain(key) in _SYSTEM and not _is_empty(value)}
    for key, value in prompts.items():
        if not isinstance(value, str):
            raise RowError(f'{where}: "{key}" is {type(value).__name__} {value!r:.60}; write the system prompt as text')
    if len(set(prompts.values())) > 1:
        raise RowError(f"{where}: {' and '.join(prompts)} differ; give one system prompt")
    return next(iter(prompts.values()), None)


def check_row(row: Mapping[str, Any], texts: Iterable[str], where: str) -> None:
    """Raise RowError for a key that would be ignored, or a weight other than 1. `texts` are the texts of the turns."""
    turn_texts = {text.strip() for text in texts}
    for key, value in row.items():
        name = _plain(key)
        if (learned := _flag(key, value, where)) is not None:
            if not learned:
                raise RowError(f'{where}: "{key}" is {value!r}, so nothing is learned; remove the row')
        elif (
            name in _DUPLICATES
            and not _is_empty(value)
            and not (isinstance(value, str) and value.strip() in turn_texts)
        ):
            raise RowError(f'{where}: "{key}" is not part of the conversation; write it as a turn or remove it')
        else:
            _refuse(key, value, _ROW.get(name) or _weighty(WEIGHTY_ROW, name), where)


def check_part(part: Mapping[str, Any], where: str) -> None:
    """Raise RowError for a key of a content part or of a listed medium that would be ignored."""
    for key, value in part.items():
        name, flag = _plain(key), _flag(key, value, where)
        if flag is False:
            raise RowError(f'{where}: "{key}" of a part is {value!r}; {WEIGHT}')
        if flag is None:
            _refuse(key, value, _PART.get(name) or _weighty(WEIGHTY, name), where)


def is_learned(turn: Mapping[str, Any], role: str, own: Iterable[str], where: str) -> bool:
    """False for an assistant turn of weight 0. Raises RowError for a key that is not in `own` and would be ignored."""
    flags: dict[str, bool] = {}
    for key, value in turn.items():
        name, flag = _plain(key), _flag(key, value, where)
        if flag is not None:
            flags[key] = flag
        elif key not in own:
            _refuse(key, value, _TURN.get(name) or _weighty(WEIGHTY, name), where)
        if role != "assistant" and flag and name not in _SILENT:
            raise RowError(f'{where}: "{key}" is {value!r}, but only assistant turns are learned; remove the key')
    if len(set(flags.values())) > 1:
        raise RowError(f"{where}: {' and '.join(flags)} contradict each other; give one of them")
    return role != "assistant" or all(flags.values())


def _flag(key: str, value: Any, where: str) -> bool | None:
    """True if the weight means "learned"; None for other keys and empty values. Raises RowError unless it is 0 or 1."""
    name = _plain(key)
    if name not in _FLAGS or (value is not False and _is_empty(value)):
        return None
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise RowError(f'{where}: "{key}" is {value!r:.40}; only 0 and 1 are supported, for a whole turn')
    return bool(value) != (name in _NEGATED)


def _refuse(key: str, value: Any, remedy: str | None, where: str) -> None:
    """Raise RowError for a key that has a remedy, unless its value is empty."""
    counts = value is False and remedy in (PAIRS, WEIGHT)
    if remedy is not None and (counts or not _is_empty(value)):
        raise RowError(f'{where}: "{key}" is not supported; {remedy}')


def _weighty(pattern: re.Pattern[str], name: str) -> str | None:
    return WEIGHT if pattern.search(name) else None


def _is_empty(value: Any) -> bool:
    """True for an empty value. Tables fill missing keys of a row with nulls."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(entry is None or entry in ("", []) for entry in value.values())
    return value is None or value is False or (isinstance(value, list | tuple) and not value)


@cache
def _plain(key: str) -> str:
    return re.sub(r"[\s_-]", "", key.lower())


def _by_key(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {_plain(key): remedy for remedy, keys in table.items() for key in keys}


_SYSTEM, _DUPLICATES, _NEGATED = (frozenset(map(_plain, keys)) for keys in (SYSTEM, DUPLICATES, NEGATED))
_FLAGS = frozenset(map(_plain, (*WEIGHTS, *NEGATED)))
_SILENT = frozenset(map(_plain, DEFAULTS)) | _NEGATED
_ROW, _TURN, _PART = map(_by_key, (ROW, TURN, PART))
