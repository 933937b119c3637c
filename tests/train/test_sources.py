"""A weighted mixture of four kinds of source: a resumed run sees what the unbroken one does, on one rank and two."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from datasets import Dataset

from scripts import prepare
from tests.runs import ended, rows, started
from train.state.checkpoint import complete

STEPS = 12


@pytest.fixture
def mixture(questions, tmp_path) -> str:
    """data.train of four sources of eight rows: JSONL, Parquet, a shard, and a dataset read as a stream."""
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
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mixture_resumes_exactly(words, mixture, tmp_path, ranks):
    def run(name: str, *more: str) -> None:
        engine = ["engine=ddp", f"train.accumulation={2 // ranks}"] if ranks > 1 else []
        fixed = [f"train.steps={STEPS}", "train.save_every=5", "train.keep=9", "tracker.batches=true", "show=false"]
        status, text = ended(
            started(*words(*fixed, *engine, mixture, *more, run_dir=tmp_path / name), ranks=ranks), 900
        )
        assert status == 0, text[-3000:]

    run("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for checkpoint in complete(tmp_path / "broken" / "checkpoints")[1:]:
        shutil.rmtree(checkpoint)
    (tmp_path / "broken" / "batches.jsonl").unlink()
    run("broken", "resume=auto")
    whole = seen(tmp_path / "whole")
    assert len(whole) == 2 * STEPS and seen(tmp_path / "broken") == [row for row in whole if row[0] > 5]
    ids = [id for *_, samples in whole for id in samples]
    assert {id.rstrip("0123456789") for id in ids} == {"json", "table", "shard", "live"}
    assert [sum(id.startswith(kind) for id in ids) for kind in ("live", "json")] == pytest.approx([8.7, 4.4], abs=3)


def test_prepare_makes_the_index_that_a_run_reads(words, mixture, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare.py", *words(mixture, f"data.cache={tmp_path / 'cache'}")])
    for _ in range(2):
        prepare.main()
        assert "data.train: 32 of 32 rows can be used" in capsys.readouterr().out
        found = sorted((tmp_path / "cache" / "v1").iterdir())
        assert sum(path.suffix == ".index" for path in found) == 4
        assert not [path for path in found if path.suffix in (".claim", ".partial")]
