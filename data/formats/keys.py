"""Handling of the keys of rows and turns that have a meaning in other trainers.

Such a key is honoured, or the row is refused with the name of the key. Empty values (null, "", an empty list or object)
are allowed. Keys are compared without case, "_" and "-". All other keys of rows and turns are metadata. Content parts
and listed media, whose keys are mostly settings, may have the keys in METADATA; any other is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from data.types import RowError

SYSTEM = (  # honoured: the system prompt of the row
    *("system", "system_prompt", "system_message", "system_instruction", "system_text", "sys", "sys_prompt"),
    "preamble",
)
WEIGHTS = (  # honoured with 0, 1, false and true: whether the turn carries loss
    *("weight", "loss", "loss_mask", "loss_weight", "loss_scale", "compute_loss", "calculate_loss", "use_loss"),
    *("train", "training", "trainable", "train_on", "train_on_turn", "learn", "learnable", "supervise", "supervised"),
)
NEGATED = ("masked", "ignore", "ignored", "ignore_loss", "skip_loss", "no_loss", "no_train")  # the same, negated
DEFAULTS = ("weight", "loss", "loss_weight", "loss_scale")  # 1 is their default, and allowed on user turns
DUPLICATES = (  # allowed if equal to the text of a turn
    *("prompt", "query", "instruction", "input", "response", "output", "completion"),
)
PIXELS = ("min_pixels", "max_pixels", "total_pixels")
FRAMES = ("nframes", "min_frames", "max_frames")
SETTINGS = ("fps", "sample_fps", *FRAMES, *PIXELS, "timestamps", "video_start", "video_end")  # honoured for a video
RESIZED = ("resized_height", "resized_width")
READ = (*SETTINGS, "messages", "conversations", "video", "videos", "image", "images", "kind", "metric", "answers")
METADATA = (  # keys of content parts and listed media that servers ignore too
    *("id", "uuid", "uid", "index", "name", "filename", "format", "mime_type", "media_type", "width", "height"),
    *("duration", "detail", "cache_control", "language", "source", "metadata"),
)

AUDIO = "audio is not supported; remove the key or convert the row"
BOXES = "grounding placeholders are not filled in; write the coordinates into the text"
CHANNEL = 'losses are not counted by channel; remove the key, or name it "kind" to evaluate by it'
CLIP = 'use "video_start" and "video_end", in seconds'
FRAME_COUNT = 'use "nframes" or "max_frames"'
FRAME_INDICES = "give the frames as a list of pictures"
FRAME_RATE = 'use "fps", and for a list of frames "sample_fps"'
FRAME_SIZE = 'servers choose the size of a frame; use "max_pixels"'
KWARGS = "write the settings themselves into the video's entry, by the names that docs/data.md lists"
LISTED = 'list the row\'s media under "videos" and "images", with one mark for each in the text'
OF_VIDEO = "write it in the content part of the video, or in the row"
PAIRS = "preference pairs and labels are not trained; keep the answer to be learned and remove the key"
TEMPLATE = "the chat template takes no such setting per row; remove the key"
THOUGHT = "write the thought into the answer's text, as <think>...</think>"
TOKENS = "rows are tokenized here; give text only"
TOOLS = "tool calls are not rendered; write them into the text as the chat template does"
WEIGHT = 'give 0 or 1 as "weight" of the assistant turns that it concerns'

EVERYWHERE = {
    AUDIO: ("audio", "audios", "audio_path", "audio_paths", "audio_url", "input_audio", "sound", "sounds", "speech"),
    BOXES: ("objects", "bbox", "bboxes", "boxes", "bbox_2d", "point_2d", "ref"),
    CHANNEL: ("channel",),
    PAIRS: (
        *("rejected", "rejected_response", "rejected_responses", "rejected_messages", "rejected_images"),
        *("rejected_videos", "chosen", "chosen_response", "chosen_messages", "positive_messages", "negative_messages"),
        *("kto_tag", "label", "labels", "margin", "completions"),
    ),
    FRAME_COUNT: ("num_frames", "max_num_frames", "num_segments", "video_maxlen"),
    FRAME_INDICES: ("frame_indices", "frames_indices", "do_sample_frames"),
    FRAME_SIZE: RESIZED,
    THOUGHT: (
        *("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks", "thought", "thoughts"),
        *("think", "cot", "chain_of_thought"),
    ),
    TOOLS: (
        *("tools", "tool", "tool_calls", "tool_call", "tool_call_id", "tool_choice", "tool_plan", "tool_results"),
        *("functions", "function", "function_call"),
    ),
    WEIGHT: (
        *("mask", "masks", "sample_weight", "instance_weight", "example_weight"),
        *("mask_history", "train_on_inputs", "train_on_input", "train_on_prompt"),
    ),
}
ROW = EVERYWHERE | {
    CLIP: ("start", "end", "start_time", "end_time", "start_sec", "end_sec", "clip_start", "clip_end"),
    FRAME_RATE: ("target_fps", "sampling_fps"),
    LISTED: (
        *("video_path", "video_paths", "video_url", "video_file", "video_files", "video_list", "media", "media_path"),
        *("image_path", "image_paths", "image_url", "image_file", "image_files", "image_list", "img", "imgs"),
    ),
    TEMPLATE: ("chat_template", "chat_template_kwargs", "documents", "enable_thinking", "parallel_tool_calls"),
    TOKENS: ("input_ids", "attention_mask", "assistant_masks", "completion_mask", "pixel_values"),
    "history is honoured in query/response rows only; write its turns into the conversation": ("history",),
}
TURN = EVERYWHERE | {
    CLIP: ROW[CLIP],
    LISTED: (
        *("video", "videos", "image", "images", "media", "files", "attachments", "path", "bytes"),
        *("video_path", "video_url", "video_file", "image_path", "image_url", "image_file", "frames"),
    ),
    OF_VIDEO: SETTINGS,
    "write the reasons into the answer's text": ("rationale", "analysis"),
    "the name of a speaker is not rendered; write it into the text": ("name",),
    "write the refusal as the turn's text": ("refusal",),
    "an answer cannot be given in part; write it whole": ("prefix", "prefill", "partial"),
    "give one system prompt for the row": ("system", "system_prompt"),
    "a turn has one role and one text": ("role", "content", "from", "value", "text"),
}
PART = EVERYWHERE | {  # content parts and the entries of a row's lists of media
    CLIP: ROW[CLIP],
    FRAME_RATE: ("raw_fps", "video_fps", *ROW[FRAME_RATE]),
}
PATTERNS = {  # of further keys everywhere, without case, "_" and "-"
    CLIP: r"(clip|segment|time|video)?(begin|end|start)(frame|idx|index|ms|s|secs?|seconds?|time|timestamp)|"
    r"(clip|frame|segment|time)(bound|range|span)s?|segments?",
    KWARGS: r".*kwargs",
    LISTED: r"(video|image|img)\d+|pictures?",
    PAIRS: r"(chosen|rejected|(dis)?preferred).*",
}
PATTERNS_ROW = PATTERNS | {WEIGHT: r".*(loss|weight|mask)s?"}
PATTERNS_TURN = PATTERNS | {
    WEIGHT: r".*(loss|weight|train|mask|learn|supervis|skip|exclu|ignor|target|backprop).*|.*grad"
}


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
            _refuse(key, value, _ROW.get(name) or _pattern(PATTERNS_ROW, name), where)
            if name in _READ and key not in READ and not _is_empty(value):
                raise RowError(f'{where}: "{key}" is not read; write it "{_READ[name]}"')


def check_part(part: Mapping[str, Any], own: Sequence[str], where: str) -> None:
    """Raise RowError for a key of a content part or of a listed medium that is not in `own` and would be ignored."""
    for key, value in part.items():
        name, flag = _plain(key), _flag(key, value, where)
        if flag is False:
            raise RowError(f'{where}: "{key}" of a part is {value!r}; {WEIGHT}')
        if flag is None and key not in own:
            _refuse(key, value, _PART.get(name) or _pattern(PATTERNS_TURN, name), where)
            if name not in _METADATA and (value is False or not _is_empty(value)):
                remedy = f'write it "{_READ[name]}"' if _READ.get(name, "") in own else "remove it"
                raise RowError(f'{where}: "{key}" of a part is unknown; {remedy}')


def is_learned(turn: Mapping[str, Any], role: str, own: Iterable[str], where: str) -> bool:
    """False for an assistant turn of weight 0. Raises RowError for a key that is not in `own` and would be ignored."""
    flags: dict[str, bool] = {}
    for key, value in turn.items():
        name, flag = _plain(key), _flag(key, value, where)
        if flag is not None:
            flags[key] = flag
        elif key not in own:
            _refuse(key, value, _TURN.get(name) or _pattern(PATTERNS_TURN, name), where)
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
    counts = value is False and remedy in (PAIRS, WEIGHT, FRAME_INDICES)
    if remedy is not None and (counts or not _is_empty(value)):
        raise RowError(f'{where}: "{key}" is not supported; {remedy}')


def _pattern(patterns: Mapping[str, str], name: str) -> str | None:
    """The remedy of the first pattern that a key matches as a whole."""
    return next((remedy for remedy, pattern in patterns.items() if re.fullmatch(pattern, name)), None)


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
_METADATA = frozenset(map(_plain, METADATA))
_READ = {_plain(key): key for key in READ}
_ROW, _TURN, _PART = map(_by_key, (ROW, TURN, PART))
