"""MVBench with the files of the Hub: json/TASK.json, and videos in video/FOLDER/ or video/*.zip.

    {"video": "ZS9XR.mp4", "question": "What happened ...?", "candidates": ["a", "b", "c"], "answer": "b",
     "start": 11.1, "end": 19.6}                                     start and end, in seconds, in some tasks

The task is the file's name. The videos of episodic_reasoning are folders of pictures, three a second; unzip tvqa.zip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.formats.benchmark import choice, video
from data.formats.conversation import finished, image, text_of
from data.formats.roots import Root
from data.formats.video_settings import pictures_of
from data.types import FrameList, RowError, Sample, VideoRef, VideoSettings

FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
PICTURE_RATE = 3.0  # pictures per second of a video that is a folder of pictures
TASK = re.compile("|".join(FOLDERS))


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample, its kind the task. RowError, naming `where`, if it cannot be used."""
    task = TASK.search(where.rsplit("/", 1)[-1])
    if task is None:
        raise RowError(f"{where}: the file name contains no task of MVBench; keep its name, such as action_count.json")
    options = [text_of(candidate, "a candidate", where) for candidate in row.get("candidates") or []]
    answer = text_of(row.get("answer"), "answer", where)
    if answer not in options:
        raise RowError(f"{where}: the answer {answer!r} is not among its candidates; correct the row")
    path, folder = text_of(row.get("video"), "video", where), FOLDERS[task[0]]
    names = [f"video/{folder}/{path}", f"{folder}/{path}", path]
    segment = (float(row["start"]), float(row["end"])) if row.get("start") is not None else None
    ref = _pictures(root, names, segment, where)
    if ref is None:
        ref = video(root, names, where)
        ref = replace(ref, start=segment[0], end=segment[1]) if segment else ref
    turns = choice(ref, text_of(row.get("question"), "question", where), options, options.index(answer))
    return finished(Sample(str(row.get("id", where)), turns, kind=task[0]), where)


def _pictures(root: Root, names: list[str], segment: tuple[float, float] | None, where: str) -> VideoRef | None:
    """The pictures of a segment, in seconds, of the first of the names that is a folder; None if none is."""
    for name in names:
        if (entries := root.entries(name, where)) is not None:
            pictures = pictures_of(name, entries, where)
            if segment:  # the benchmark counts pictures from 1
                first, last = (round(seconds * PICTURE_RATE) for seconds in segment)
                pictures = pictures[max(first - 1, 0) : last]
            frames = FrameList(tuple(image(picture, root, where) for picture in pictures))
            return VideoRef(root.find(name, where)[0], content=frames, settings=VideoSettings(fps=PICTURE_RATE))
    return None
