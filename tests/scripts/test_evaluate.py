"""The command as a user runs it: killed and started again, on several ranks, beside another model, on broken data."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.types import MediaError
from scripts import evaluate
from train import cli
from train.evaluation import baselines
from train.reports.curve import baseline_curves, from_results

ROOT = Path(__file__).parents[2]
SMALL = ["rates=[0,0.5,0.9]", "max_frames=8", "max_pixels=25088", "workers=0", "dtype=float32", "new_tokens=4"]
QUESTIONS, RATES = 16, 3

pytestmark = pytest.mark.slow


@pytest.fixture
def graded(questions) -> Path:
    """The eight conversations, half of them with a metric for their free answers, of two kinds."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"kind": "first" if i < 4 else "second"} | ({"metric": "f1", "answers": ["5"]} if i % 2 else {})
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return questions


@pytest.fixture
def words(checkpoint, graded) -> Callable[..., list[str]]:
    model = f"model={checkpoint('qwen3_vl')}"
    return lambda out, *more: [str(ROOT / "scripts/evaluate.py"), model, f"data={graded}", f"out={out}", *SMALL, *more]


def run(words: list[str]) -> str:
    """What the command prints, in this process: a start of its own imports libraries for ten seconds."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.run(evaluate.main, evaluate.Options, words[1:])
    return out.getvalue()


def started(words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def refusal(words: list[str]) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as end:
        cli.run(evaluate.main, evaluate.Options, words[1:])
    (line,) = [line for line in err.getvalue().splitlines() if line.startswith("error:")]
    assert end.value.code == 2
    return line


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:] if path.exists() else []


def test_answers_that_are_there_are_not_asked_again_and_the_table_is_the_same(words, tmp_path):
    whole = run(words(tmp_path / "whole.json"))
    setting, *answers = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    done = {json.loads(line)["question"] for line in answers[: 2 * RATES]}
    there = [line for line in answers if json.loads(line)["question"] in done]
    (tmp_path / "broken.jsonl").write_text("".join([setting, *there, answers[-1][:20]]))  # its last write was cut off
    second = run(words(tmp_path / "broken.json"))
    assert f"{len(there)} answers are there already; {8 - len(there) // (2 * RATES)} samples to ask" in second
    assert sorted(lines(tmp_path / "broken.jsonl")) == sorted(lines(tmp_path / "whole.jsonl"))
    assert table(second) == table(whole)
    graded_by = Counter(json.loads(line)["metric"] for line in lines(tmp_path / "whole.jsonl"))
    assert graded_by == {"choice": 8 * RATES, "greedy": 4 * RATES, "f1": 4 * RATES}  # options come before a metric
    third = run(words(tmp_path / "broken.json"))  # nothing is left to ask, and no model is loaded
    assert "0 samples to ask" in third and table(third) == table(whole)


@pytest.mark.faults
def test_a_killed_run_asks_nothing_twice(words, tmp_path):
    first, log = started(words(tmp_path / "broken.json")), tmp_path / "broken.jsonl"
    while len(lines(log)) < 3:
        assert first.poll() is None, first.communicate()[1][-2000:]
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    there = lines(log)
    assert 0 < len(there) < QUESTIONS * RATES
    second = run(words(tmp_path / "broken.json"))
    found = re.search(r"(\d+) answers are there already; (\d+) samples to ask", second)
    assert found and int(found[1]) == len(there) and int(found[2]) == 8 - len(there) // (2 * RATES)
    assert set(there) <= set(lines(log)) and len(set(lines(log))) == QUESTIONS * RATES


def test_two_ranks_answer_as_one_does(words, ranks, tmp_path):
    alone = run(words(tmp_path / "one.json"))
    together = ranks.run("evaluate", *words(tmp_path / "two.json")[1:])
    assert table(together) == table(alone)
    assert lines(tmp_path / "two.jsonl") == lines(tmp_path / "one.jsonl")
    assert list(tmp_path.glob("*.rank*")) == []


def test_a_model_is_no_better_than_itself(words, tmp_path):
    run(words(tmp_path / "base.json"))
    same = run(words(tmp_path / "again.json", f"compare={tmp_path / 'base.json'}"))
    assert same.count("+0.0 points (+0.0 to +0.0) against") == RATES and same.count("p = 1,") == RATES
    assert "evaluate both models on the same data" in refusal(
        words(tmp_path / "less.json", "limit=2", f"compare={other(tmp_path)}")
    )


def test_pruning_is_compared_with_fewer_and_smaller_frames_at_equal_tokens(words, tmp_path):
    asked = words(tmp_path / "a.json", "baselines=[frames,pixels]")
    first = run(asked)
    results = json.loads((tmp_path / "a.json").read_text())["baselines"]
    by_kind = {(one["baseline"], one["rate"]): one for one in results}
    half = by_kind["frames", 0.5]
    assert half["answers"] == half["questions"] == QUESTIONS and half["kept"] == half["pruned_kept"] == 0.5
    lost = by_kind["frames", 0.9]
    assert (lost["answers"], lost["reason"]) == (0, "fewer than min_frames=4")
    assert "not reached: fewer than min_frames=4" in first and "At 50 % of the video tokens, pruning is" in first
    assert re.search(r"score: area 0\.\d+ .* \(mean of \d videos", first)
    frames = lines(tmp_path / "a.frames_0.5.jsonl")
    assert len(frames) == QUESTIONS and {json.loads(line)["rate"] for line in frames} == {0.0}
    again = run(asked)
    assert [line for line in again.splitlines() if "|" in line] == [line for line in first.splitlines() if "|" in line]
    assert baseline_curves(from_results(tmp_path / "a.json"))[0].name.endswith("fewer frames, not pruned")


def test_a_video_that_cannot_be_read_again_is_counted_with_its_reason(words, tmp_path, monkeypatch):
    def gone(refs, limits):
        return {ref: MediaError("no longer there") for ref in refs}

    monkeypatch.setattr(baselines, "read_headers", gone)
    assert "not reached: no longer there" in run(words(tmp_path / "a.json", "baselines=[frames]", "rates=[0,0.5]"))


def test_the_scores_are_written_before_the_baselines(words, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("the disk is gone")

    monkeypatch.setattr(baselines.Baselines, "make", fails)
    assert refusal(words(tmp_path / "a.json", "baselines=[frames]")) == "error: the disk is gone"
    assert len(json.loads((tmp_path / "a.json").read_text())["scores"]) == RATES


def test_baselines_need_pruning_and_videos(words, graded, tmp_path):
    assert "need a rate above 0" in refusal(words(tmp_path / "a.json", "baselines=[even]", "rates=[0]"))
    turns = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    graded.write_text(json.dumps({"id": "a", "conversations": turns}) + "\n")
    assert "has a video: remove baselines=" in refusal(words(tmp_path / "b.json", "baselines=[even]"))


def test_what_cannot_be_asked_is_one_line(words, graded, tmp_path):
    rows = graded.read_text().splitlines()
    graded.write_text("\n".join([rows[0].replace(".mp4", ".gone"), *rows[1:]]))
    line = refusal(words(tmp_path / "x.json"))
    assert "1 of 8 samples" in line and ".gone" in line and "allow_missing=true" in line
    assert "42 answers" not in (out := run(words(tmp_path / "x.json", "allow_missing=true"))) and "14 answers" in out
    graded.write_text("\n".join(row.replace('"f1"', '"bleu"') for row in rows))
    line = refusal(words(tmp_path / "y.json"))
    assert "metric 'bleu' is unknown" in line and "anls" in line


def other(tmp_path: Path) -> Path:
    """The results of a benchmark that shares no question."""
    answers = [json.loads(line) for line in lines(tmp_path / "base.jsonl")]
    path = tmp_path / "other.json"
    path.write_text("{}")
    rows = [{"setting": {}}, *({**each, "question": each["question"][::-1]} for each in answers)]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(("|", "rate ", "serve "))]
