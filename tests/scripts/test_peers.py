"""The benchmark beside other frameworks: its figures, its table and its checks; and one real pair of runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from data.batching.plans import Plan
from scripts.bench.peers import environments, figures, material, race, runs
from scripts.bench.peers.contenders import MODES, PEERS, RATES, Job, ours


def batch(step: int, grid: tuple[int, int, int] = (2, 4, 4), **more: int) -> dict:
    return {"step": step, "grids": [list(grid)], "video_tokens": 8, "labels": 3, **more}


def rounds(*samples_per_s: float, **spans: float) -> dict:
    known = dict.fromkeys((*figures.SPANS, "step_s", "other", "processor_s", "peak_gib", "first_step_s"), 1.0) | spans
    return {"rounds": [known | {"samples_per_s": each} for each in samples_per_s]}


def test_the_warm_up_is_not_counted_and_the_rest_of_a_step_is_other():
    steps = [{}, {"seconds": 99.0}, {"seconds": 2.0, "vision": 0.5}, {"seconds": 4.0, "vision": 0.5, "backward": 1.0}]
    steps = [step | {"processor": 2.0} for step in steps]
    record = {"steps": steps, "batches": [batch(i) for i in range(4)], "peak_bytes": 2**30, "first_step_s": 7.0}
    found = figures.summary(record)
    assert found["samples_per_s"] == pytest.approx(1 / 3) and found["step_s"] == 3.0
    assert (found["vision"], found["backward"], found["other"]) == (0.5, 0.5, 2.0)


def test_what_a_peer_was_given_otherwise_is_named():
    mine = [batch(0), batch(1)]
    assert figures.differences(mine, mine) == []
    [line] = figures.differences(mine, [batch(0), batch(1, labels=4)])
    assert line == "label tokens differ in 1 of 2 batches, first 4 against 3"
    assert figures.incoherent(mine) == [] and "7 video tokens" in figures.incoherent([batch(0, video_tokens=7)])[0]


def test_ratios_are_taken_round_by_round_and_a_failure_is_a_row():
    rows = {"ours at 0": rounds(2.0, 4.0), "slow": rounds(1.0, 1.0), "broken": {"rounds": [], "reason": "no|wheel"}}
    lines = figures.table(rows).splitlines()
    assert "3.00x (2.00..4.00)" in lines[3] and lines[4].startswith("| broken | no/wheel |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_peer_that_is_ahead_is_named_with_the_spans_it_wins():
    modes = {"batch 1": {"ours at 0": rounds(1.0, backward=2.0), "fast": rounds(1.5), "ours at .75": rounds(3.0)}}
    [line] = figures.behind(modes, list(RATES))
    assert line.startswith("batch 1: fast is ahead (backward +1.00 s; processor")


def test_every_second_round_runs_in_the_opposite_order():
    contenders = [ours("ours at 0"), PEERS["trl"]]
    order = [each.name for _, _, each in race.schedule(contenders, ["batch 1"], 2)]
    assert order == ["ours at 0", "TRL", "TRL", "ours at 0"]


def test_the_reason_of_a_failure_is_its_last_error():
    log = "Traceback\nValueError: packing needs flash attention\n\nRuntimeError: wrapped\n  0%|  | 0/6\n"
    assert runs.reason(log) == "RuntimeError: wrapped"
    assert runs.reason("killed\n") == "killed" and runs.reason("") == "it printed nothing"


def test_a_record_is_taken_again_only_while_nothing_it_depends_on_changes(tmp_path, monkeypatch):
    started = []

    def run(contender, job, settings):
        started.append(settings.threads)
        (job.folder / "record.json").write_text(json.dumps({"steps": []}))

    monkeypatch.setattr(runs, "_run", run)
    made = material.BenchmarkData(tmp_path, tmp_path, tmp_path)
    job = Job(MODES[0], 3, made, "sdpa", 1, True, tmp_path / "a", tmp_path)
    for threads in (1, 1, 2):
        runs.record(PEERS["trl"], job, runs.Settings(threads, cpu=True))
    assert started == [1, 2]


def test_a_version_that_does_not_resolve_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be installed: .*evs-no-such-package"):
        environments.build(tmp_path / "environment", ["evs-no-such-package==9.9"])


def test_a_failed_contender_is_a_row_and_is_not_tried_again(tmp_path, monkeypatch):
    tried = []

    def fail(contender, job, settings):
        tried.append(contender.name)
        raise runs.Failed("ImportError: gone")

    monkeypatch.setattr(runs, "record", fail)
    made = material.BenchmarkData(tmp_path, tmp_path, tmp_path)
    options = race.Options(folder=str(tmp_path), rounds=2, modes=["batch 1", "packed"])
    contest = race.Comparison(options, made, cpu=True)
    contest.build([PEERS["trainer"]])
    contest.run([PEERS["trainer"]])
    assert tried == ["transformers' Trainer"]
    assert contest.results["batch 1"]["transformers' Trainer"]["reason"] == "ImportError: gone"
    assert "packs text alone" in contest.results["packed"]["transformers' Trainer"]["reason"]


def test_peers_read_the_rows_in_the_order_in_which_our_run_takes_them(tmp_path):
    made = material.BenchmarkData(tmp_path, tmp_path / "ours.jsonl", tmp_path / "peers.jsonl")
    material._write_rows(made, [{"video": f"{i}.mp4", "q": "?", "a": "!"} for i in range(6)])
    ours_rows, peers_rows = ([json.loads(x) for x in p.read_text().splitlines()] for p in (made.ours, made.peers))
    plan = Plan(6, 2, 1, world=1, rank=0, seed=0)
    taken = [ours_rows[place]["video"] for step in range(3) for place in plan.micro_batches(step)[0]]
    assert [row["videos"][0] for row in peers_rows] == taken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peers": ["trll"]}, "did you mean 'trl'"),
        ({"modes": ["batch 3"]}, "modes holds 'batch 3'"),
        ({"device": "tpu"}, "device=tpu is unknown"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
    ],
)
def test_a_bad_option_is_named_before_anything_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        race.check(replace(race.Options(), **change))


@pytest.mark.slow
def test_ours_and_the_trainer_are_given_the_same_and_recorded_alike(tmp_path, monkeypatch, capsys):
    tiny = dict(material.SIZES) | {"text_width": 64, "text_heads": 2, "text_layers": 2, "text_mlp": 64}
    monkeypatch.setattr(material, "SIZES", tiny | {"vocabulary": 768, "vision_depth": 2})
    monkeypatch.setattr(race, "RATES", {"ours at 0": RATES["ours at 0"]})
    out = tmp_path / "figures.json"
    options = race.Options(["trainer"], [MODES[0]], "cpu", folder=str(tmp_path), rounds=1, samples=1, out=str(out))
    race.main(options)
    rows = json.loads(out.read_text())["result"]["batch 1"]
    for name in ("ours at 0", "transformers' Trainer"):
        [figure] = rows[name]["rounds"]
        assert all(figure[span] > 0 for span in ("samples_per_s", *figures.SPANS, "first_step_s", "peak_gib"))
    assert "are equal in all batches" in capsys.readouterr().out
    race.main(options)  # the records are there
    assert json.loads(out.read_text())["result"]["batch 1"] == rows
