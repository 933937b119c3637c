"""A weighted mixture of four kinds of source: a resumed run sees what the unbroken one does, on one rank and two."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from data.batching.plans import Plan
from data.loader import step_loader
from data.sources.collection import VERSION
from scripts import prepare
from tests.data import videos
from tests.runs import composed, rows, trained
from train.build import Prepared
from train.build import prepare as prepared
from train.checkpoint.checkpoint import complete

STEPS = 8


@pytest.fixture
def mixture(questions, tmp_path) -> str:
    """data.train of four sources of eight rows: JSONL, Parquet, a shard, and a dataset read as a stream."""
    return mixed(questions, tmp_path)


@pytest.fixture
def small_mixture(questions, tmp_path) -> str:
    """The same about clips of a few milliseconds' decoding, two to a dozen frames."""
    each = [json.loads(line) for line in questions.read_text().splitlines()]
    for i, row in enumerate(each):
        row["video"] = str(videos.write(tmp_path / f"{i}.mp4", [j / 2 for j in range(2 + i)]))
    questions.write_text("".join(json.dumps(row) + "\n" for row in each))
    return mixed(questions, tmp_path)


def mixed(questions: Path, tmp_path: Path) -> str:
    each = [json.loads(line) for line in questions.read_text().splitlines()]
    of = {
        kind: [row | {"id": f"{kind}{i}"} for i, row in enumerate(each)] for kind in ("json", "table", "shard", "live")
    }
    questions.write_text("".join(json.dumps(row) + "\n" for row in of["json"]))
    Dataset.from_list(of["table"]).to_parquet(tmp_path / "table.parquet")
    Dataset.from_list(of["live"]).save_to_disk(tmp_path / "live")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for i, row in enumerate(of["shard"]):
            archive.add(row.pop("video"), f"{i}.mp4")
            info, text = tarfile.TarInfo(f"{i}.json"), json.dumps(row).encode()
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    live = f"live:{{path:{tmp_path / 'live'},streaming:true,weight:2}}"
    return f"data.train={{{questions}:1,{tmp_path / 'table.parquet'}:1.5,{tmp_path / 'shard.tar'}:1,{live}}}"


def seen(run_dir: Path) -> list[tuple[int, int, list[str]]]:
    return sorted((row["step"], row["place"], row["samples"]) for row in rows(run_dir, "batches.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_mixture_resumes_exactly(words, mixture, two_ranks, tmp_path, world):
    def run(name: str, *more: str) -> None:
        engine = ["engine=ddp", "train.accumulation=1"] if world > 1 else []
        fixed = [f"train.steps={STEPS}", "train.save_every=3", "train.keep=9", "tracker.batches=true", "show=false"]
        train = two_ranks if world > 1 else trained
        train(*words(*fixed, *engine, mixture, *more, run_dir=tmp_path / name))

    run("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for checkpoint in complete(tmp_path / "broken" / "checkpoints")[1:]:
        shutil.rmtree(checkpoint)
    (tmp_path / "broken" / "batches.jsonl").unlink()
    run("broken", "resume=auto")
    whole = seen(tmp_path / "whole")
    assert len(whole) == 2 * STEPS and seen(tmp_path / "broken") == [row for row in whole if row[0] > 3]
    ids = [id for *_, samples in whole for id in samples]
    assert {id.rstrip("0123456789") for id in ids} == {"json", "table", "shard", "live"}
    assert [sum(id.startswith(kind) for id in ids) for kind in ("live", "json")] == pytest.approx([5.8, 2.9], abs=3)


PLACES, LONG, BROKEN, SEEN = 2, 200, (7, 61, 130), 5  # of a step; steps; where they are broken off


def shared(plan: Any, world: int, rank: int) -> Any:
    """A rank's part of the same steps, as a start plans it."""
    turns = {"accumulation": PLACES // world} if isinstance(plan, Plan) else {}
    return replace(plan, rank=rank, world=world, **turns)


def planned(ready: Prepared, plan: Any, first: int, last: int) -> list[list[tuple[str, ...]]]:
    """[step][turn] ids of rows, read from their sources, from a start at `first`."""
    samples = ready.train_set.samples
    return [
        [tuple(samples[place].id for place in batch) for batch in plan.micro_batches(step)]
        for step in range(first, last)
    ]


def sent(ready: Prepared, plan: Any, first: int, last: int) -> list[list[tuple[str, ...]]]:
    """The same as a data worker sends them, decoded."""
    loader = step_loader(ready.train_set.samples, ready.encoder, plan, first_step=first, last_step=last, workers=1)
    return [[batch.ids for batch in step.batches] for step in loader]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [[], ["train.token_budget=600"]], ids=["numbers", "budget"])
def test_hundreds_of_steps_of_a_mixture_are_the_same_wherever_they_are_broken(words, small_mixture, budget):
    given = words(small_mixture, "preflight=only", "show=false", f"train.accumulation={PLACES}", *budget)
    ready = prepared(composed(*given))
    whole = planned(ready, shared(ready.plan, 1, 0), 0, LONG)
    for first, last in pairwise([0, *BROKEN, LONG]):
        ranks = [planned(ready, shared(ready.plan, 2, rank), first, last) for rank in range(2)]
        assert planned(ready, shared(ready.plan, 1, 0), first, last) == whole[first:last]
        assert [[*one, *two] for one, two in zip(*ranks)] == whole[first:last]
        assert sent(ready, shared(ready.plan, 1, 0), first, first + SEEN) == whole[first : first + SEEN]
        assert sent(ready, shared(ready.plan, 2, 1), first, first + SEEN) == ranks[1][:SEEN]
    seen = Counter(id for step in whole for batch in step for id in batch)
    shares = Counter(id.rstrip("0123456789") for id in seen.elements())
    assert len(seen) == 32 and min(seen.values()) > 4  # epochs of every source
    assert [shares[kind] / seen.total() for kind in ("live", "table")] == pytest.approx([2 / 5.5, 1.5 / 5.5], abs=0.02)


def test_prepare_makes_the_index_that_a_run_reads(words, mixture, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare.py", *words(mixture, f"data.cache={tmp_path / 'cache'}")])
    for _ in range(2):
        prepare.main()
        assert "data.train: 32 of 32 rows can be used" in capsys.readouterr().out
        found = sorted((tmp_path / "cache" / f"v{VERSION}").iterdir())
        assert sum(path.suffix == ".index" for path in found) == 4
        assert not [path for path in found if path.suffix in (".lock", ".partial")]
