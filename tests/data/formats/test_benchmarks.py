"""The benchmarks in the layout in which the Hub has them, written here: parquet or JSON, videos in folders or zips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.media.container import probe
from data.media.frame_list import load_frames
from data.types import RowError, Sample, Span
from tests.data import videos
from tests.data.reading import read


def parquet(path: Path, *rows: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def film(path: Path, frames: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return videos.write(path, [i / 25 for i in range(frames)])


def zipped(path: Path, member: str, film: Path, how: int = ZIP_STORED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w", how) as archive:
        archive.writestr("data/", "")
        archive.write(film, member)


def text(sample: Sample) -> tuple[str, str]:
    """(what is asked, the answer)."""
    asked, answer = sample.turns
    return str(asked.parts[1]), str(answer.parts[0])


VIDEO_MME = {
    **{"video_id": "001", "videoID": "fFjv93ACGo8", "question_id": "001-1", "duration": "short"},
    **{"task_type": "Counting Problem", "question": "How many?", "options": ["A. 1.", "B. 2."], "answer": "B"},
}


def test_video_mme_from_a_folder_and_from_a_zip(tmp_path):
    rows = [VIDEO_MME, VIDEO_MME | {"videoID": "zipped", "question_id": "002-1"}, VIDEO_MME | {"videoID": "gone"}]
    file = parquet(tmp_path / "videomme" / "test-00000-of-00001.parquet", *rows)
    film(tmp_path / "data" / "fFjv93ACGo8.mp4")
    zipped(tmp_path / "videos_chunked_01.zip", "data/zipped.mp4", film(tmp_path / "elsewhere.mp4", 12))
    there, within, gone = read(file, format="video_mme", media_root=str(tmp_path))
    assert (there.id, there.kind) == ("001-1", "Counting Problem")
    asked, answer = text(there)
    assert asked.startswith("How many?\nA. 1.\nB. 2.\nAnswer with") and answer == "B"
    assert [probe(sample.media[0]).frames for sample in (there, within)] == [8, 12]
    assert isinstance(within.media[0].content, Span) and gone.media[0].path.endswith("data/gone.mp4")


def test_videos_that_a_zip_compresses_are_to_be_extracted(tmp_path):
    file = parquet(tmp_path / "test.parquet", VIDEO_MME)
    zipped(tmp_path / "v.zip", "data/fFjv93ACGo8.mp4", film(tmp_path / "elsewhere.mp4"), ZIP_DEFLATED)
    with pytest.raises(ValueError, match="are compressed: unzip it"):
        read(file, format="video_mme")[0]


def test_long_video_bench_leaves_out_options_that_are_none(tmp_path):
    row = {f"option{i}": name for i, name in enumerate(["a dog", "a cat", "N/A", "N/A", "N/A"])}
    row |= {"id": "x_0", "video_path": "x.mp4", "question": "Which?", "correct_choice": 1, "question_category": "T2A"}
    film(tmp_path / "videos" / "x.mp4")
    file = parquet(tmp_path / "validation-00000-of-00001.parquet", row, row | {"correct_choice": 4})
    samples = read(file, format="long_video_bench")
    asked, answer = text(samples[0])
    assert "A. a dog\nB. a cat\nAnswer" in asked and answer == "B" and samples[0].kind == "T2A"
    assert probe(samples[0].media[0]).frames == 8
    with pytest.raises(RowError, match="correct_choice=4 is not among the 2 options"):
        samples[1]


def test_temp_compass_asks_letters_and_grades_the_rest_by_what_an_answer_contains(tmp_path):
    row = {"video_id": "1", "dim": "direction", "question": "Which way?\nA. left\nB. right", "answer": "B. right"}
    closed = row | {"question": "Is it fast?", "answer": "yes"}
    caption = row | {"question": "Which one?\nCaption A: up\nCaption B: down", "answer": "Caption B: down"}
    zipped(tmp_path / "tempcompass_videos.zip", "videos/1.mp4", film(tmp_path / "elsewhere.mp4"))
    letters, yes, captions = read(parquet(tmp_path / "test.parquet", row, closed, caption), format="temp_compass")
    assert text(letters)[1] == "B" and letters.metric is None and letters.kind == "direction"
    assert (text(yes)[1], yes.metric) == ("yes", "contains")
    assert captions.answers == ("Caption B", "down")
    assert probe(letters.media[0]).frames == 8


def test_mv_bench_knows_its_task_by_the_file_and_takes_the_stretch_that_a_row_names(tmp_path):
    row = {
        "video": "Z.mp4",
        "question": "What?",
        "candidates": ["a", "b", "c"],
        "answer": "c",
        "start": 0.1,
        "end": 0.2,
    }
    (tmp_path / "json").mkdir()
    for name in ("action_sequence", "other"):
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps([row]))
    film(tmp_path / "video" / "star" / "Charades_v1_480" / "Z.mp4")
    root = str(tmp_path)
    (sample,) = read(str(tmp_path / "json" / "action_sequence.json"), format="mv_bench", media_root=root)
    assert text(sample)[1] == "C" and sample.kind == "action_sequence"
    assert (sample.media[0].start, sample.media[0].end) == (0.1, 0.2) and probe(sample.media[0]).frames < 8
    with pytest.raises(RowError, match="contains no task"):
        read(str(tmp_path / "json" / "other.json"), format="mv_bench", media_root=root)[0]


def test_mv_bench_reads_a_folder_of_pictures_as_a_video_of_three_frames_a_second(tmp_path):
    row = {"video": "castle", "question": "Why?", "candidates": ["a", "b"], "answer": "a", "start": 1.0, "end": 3.0}
    file, folder = (
        tmp_path / "json" / "episodic_reasoning.json",
        tmp_path / "video" / "tvqa" / "frames_fps3_hq" / "castle",
    )
    file.parent.mkdir()
    file.write_text(json.dumps([row, row | {"start": None, "end": None}]))
    folder.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(videos.picture(number, 64, 64)).save(folder / f"{number + 1:05d}.jpg", quality=95)
    cut, whole = (sample.media[0] for sample in read(str(file), format="mv_bench", media_root=str(tmp_path)))
    clip = load_frames(cut, cut.content, fps=cut.settings.fps, max_frames=16)
    assert videos.numbers(clip.frames_THWC) == list(range(2, 9)) and clip.fps == 3
    assert len(whole.content.pictures) == 12
