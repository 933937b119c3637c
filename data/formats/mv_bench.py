"""MVBench with the files of the Hub: json/TASK.json, and videos in video/FOLDER/ or video/*.zip.

    {"video": "ZS9XR.mp4", "question": "What happened ...?", "candidates": ["a", "b", "c"], "answer": "b",
     "start": 11.1, "end": 19.6}                                     start and end, in seconds, in some tasks

The task is the file's name. Videos stored as folders of pictures (episodic_reasoning) are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.formats.benchmark import choice, video
from data.formats.conversation import finished, text_of
from data.formats.roots import Root
from data.types import RowError, Sample

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
    ref = video(root, [f"video/{folder}/{path}", f"{folder}/{path}", path], where)
    if row.get("start") is not None:
        ref = replace(ref, start=float(row["start"]), end=float(row["end"]))
    turns = choice(ref, text_of(row.get("question"), "question", where), options, options.index(answer))
    return finished(Sample(str(row.get("id", where)), turns, kind=task[0]), where)
