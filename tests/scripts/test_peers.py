"""The comparison with other frameworks: its figures, its table and its checks; and one real pair of runs."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from transformers.video_utils import load_video

from data.batching.plans import Plan
from scripts.bench import processes, training_data
from scripts.bench.peers import comparison, environments, figures, jobs
from scripts.bench.peers.frameworks import OURS, PEERS


def batch(step: int, grid: tuple[int, int, int] = (2, 4, 4), **more: int) -> dict:
    return {"step": step, "grids": [list(grid)], "video_tokens": 8, "labels": 3, **more}


def rounds(*samples_per_s: float) -> dict:
    names = (*figures.SPANS, "step_s", "other", "processor_s_per_sample", "peak_gib", "first_step_s")
    return {"rounds": [dict.fromkeys(names, 1.0) | {"samples_per_s": value} for value in samples_per_s]}


def test_the_warm_up_is_not_counted_and_the_rest_of_a_step_is_other():
    steps = [{}, {"seconds": 99.0}, {"seconds": 2.0, "vision": 0.5}, {"seconds": 4.0, "vision": 0.5, "backward": 1.0}]
    steps = [step | {"processor": 2.0} for step in steps]
    record = {"steps": steps, "batches": [batch(i) for i in range(4)], "peak_bytes": 2**30, "first_step_s": 7.0}
    summary = figures.summary(record)
    assert summary["samples_per_s"] == pytest.approx(1 / 3) and summary["step_s"] == 3.0
    assert (summary["vision"], summary["backward"], summary["other"]) == (0.5, 0.5, 2.0)


def test_a_difference_between_batches_is_named():
    mine = [batch(0), batch(1)]
    assert figures.differences(mine, mine) == []
    [line] = figures.differences(mine, [batch(0), batch(1, labels=4)])
    assert line == "label tokens differ in 1 of 2 batches, first 4 against 3"


def test_ratios_are_taken_round_by_round_and_a_failure_is_a_row():
    rows = {"ours at 0": rounds(2.0, 4.0), "slow": rounds(1.0, 1.0), "broken": {"rounds": [], "reason": "no|wheel"}}
    lines = figures.table(rows).splitlines()
    assert "3.00x (2.00..4.00)" in lines[3] and lines[4].startswith(r"| broken | no\|wheel |")
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_what_pruning_saves_is_said_of_ours_and_of_each_peer():
    rows = {name: rounds(1.0) for name in ("ours at 0", "ours at .75", "slow", "slow at .75", "stock")}
    rows["ours at .75"]["rounds"][0]["step_s"], rows["slow at .75"]["rounds"][0]["step_s"] = 0.25, 0.5
    rows["stock at .75"] = {"rounds": [], "reason": "gone"}
    ours, slow, stock = (line.split(" | ")[-3:] for line in figures.table(rows).splitlines()[2:])
    assert [cell.strip(" |") for cell in ours] == ["0.25", "75%", ""]
    assert [cell.strip(" |") for cell in slow] == ["0.50", "50%", "0.67"]
    assert [cell.strip(" |") for cell in stock] == ["gone", "", ""]


def test_the_largest_difference_between_losses_counts():
    mine, theirs = (
        [batch(i) | {"loss": loss} for i, loss in enumerate(losses)] for losses in ([1.0, 2.0], [1.5, 2.25])
    )
    assert figures.loss_difference(mine, theirs) == 0.5


def test_every_second_round_runs_in_reverse_order():
    order = [one.name for _, _, one in comparison.order([OURS[0], PEERS["trl"]], ["batch 1"], 2)]
    assert order == ["ours at 0", "TRL", "TRL", "ours at 0"]


def test_the_reason_of_a_failure_is_its_last_error():
    log = "Traceback\nValueError: packing needs flash attention\n\nRuntimeError: wrapped\n  0%|  | 0/6\n"
    assert processes.reason(log) == "RuntimeError: wrapped"
    assert processes.reason("killed\n") == "killed" and processes.reason("") == "it printed nothing"


def test_a_record_is_used_again_until_something_it_depends_on_changes(tmp_path, monkeypatch):
    started = []

    def run(framework, job):
        started.append(job.steps)
        return {"steps": job.steps}

    monkeypatch.setattr(comparison, "run", run)
    monkeypatch.setattr(jobs, "prepare", lambda folder: training_data.BenchmarkData(folder, folder, folder))
    for samples in (1, 1, 2):
        (tmp_path / "records").mkdir(exist_ok=True)
        comparison.measure(PEERS["trainer"], "batch 1", 0, tmp_path, comparison.Options(samples=samples))
    assert started == [3, 4]


@pytest.mark.slow
@pytest.mark.extended
def test_a_package_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="pip could not install evs-no-such-package"):
        environments.build(tmp_path / "environment", ["evs-no-such-package==9.9"])


def test_a_failed_framework_is_a_row_and_is_not_tried_again(tmp_path, monkeypatch):
    started = []

    def fail(framework, job):
        started.append(framework.name)
        raise ValueError("ImportError: gone")

    monkeypatch.setattr(comparison, "run", fail)
    monkeypatch.setattr(comparison, "OURS", ())
    monkeypatch.setattr(jobs, "prepare", lambda folder: training_data.BenchmarkData(folder, folder, folder))
    options = comparison.Options(["trainer"], ["batch 1", "packed"], rounds=2, folder=str(tmp_path))
    modes = comparison.compare(options)["modes"]
    assert started == ["transformers' Trainer", "transformers' Trainer at .75"]
    assert modes["batch 1"]["transformers' Trainer"]["reason"] == "ImportError: gone"
    assert "packs text alone" in modes["packed"]["transformers' Trainer"]["reason"]


def test_a_checkpoint_that_vllm_does_not_serve_as_trained_is_a_row(tmp_path, monkeypatch):
    def refuse(framework, job, vllm_python):
        assert (framework.rate, vllm_python) == ("uniform", "vllm/bin/python")
        raise ValueError("check_serving.py: 1 of 30 differ")

    monkeypatch.setattr(comparison, "compare_with_vllm", refuse)
    monkeypatch.setattr(jobs, "prepare", lambda folder: training_data.BenchmarkData(folder, folder, folder))
    result = comparison.compare(
        comparison.Options(["trainer"], [], folder=str(tmp_path), vllm_python="vllm/bin/python")
    )
    assert result["served"] == {"transformers' Trainer uniform": {"reason": "check_serving.py: 1 of 30 differ"}}
    assert result["checks"] == []


def test_peers_read_the_rows_in_the_order_in_which_our_run_takes_them(tmp_path):
    data = training_data.BenchmarkData(tmp_path, tmp_path / "ours.jsonl", tmp_path / "peers.jsonl")
    training_data.write_rows(data, [(f"{i}.mp4", "?", "!") for i in range(6)])
    ours, peers = ([json.loads(line) for line in path.read_text().splitlines()] for path in (data.ours, data.peers))
    plan = Plan(6, 2, 1, world=1, rank=0, seed=0)
    taken = [ours[i]["video"] for step in range(3) for i in plan.micro_batches(step)[0]]
    assert [row["videos"][0] for row in peers] == taken


def test_every_way_of_sampling_two_frames_a_second_reads_the_same_pixels(tmp_path):
    training_data.write_clip(tmp_path / "clip.mp4", 1)
    frames, _ = load_video(str(tmp_path / "clip.mp4"), backend="pyav")
    ours = frames[:: training_data.FPS // 2]
    spread = np.linspace(0, len(frames) - 1, len(ours))
    assert np.array_equal(frames[spread.astype(int)], ours) and np.array_equal(frames[spread.round().astype(int)], ours)
    assert all((a != b).any() for a, b in pairwise(ours))


@pytest.mark.slow
@pytest.mark.extended
def test_ours_and_the_trainer_train_on_equal_batches_and_are_recorded_alike(tmp_path, monkeypatch):
    tiny = {"text_width": 64, "text_heads": 2, "text_layers": 2, "text_mlp": 64, "vocabulary": 768, "vision_depth": 2}
    monkeypatch.setattr(training_data, "SIZES", training_data.SIZES | tiny)
    monkeypatch.setattr(comparison, "OURS", OURS[:1])
    options = comparison.Options(["trainer"], ["batch 1"], folder=str(tmp_path), rounds=1, samples=1)
    result = comparison.compare(options)
    for name in ("ours at 0", "transformers' Trainer"):
        [figure] = result["modes"]["batch 1"][name]["rounds"]
        assert all(figure[span] > 0 for span in ("samples_per_s", *figures.SPANS, "first_step_s", "peak_gib"))
    equal, *losses = result["checks"]
    assert equal == "grids, video tokens and label tokens are equal in all batches" and len(losses) == 1
    assert comparison.compare(options) == result  # the records are there
