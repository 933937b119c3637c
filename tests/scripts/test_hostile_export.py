"""An export holds what belongs to the model, and nothing of where it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from scripts import export, report
from tests.runs import trained

pytestmark = pytest.mark.slow


def private(base: Path) -> Path:
    """Puts files into a base model's folder that are nobody else's business."""
    for name in (".env", "notes.txt", "token.json", "notes.py", "secrets.yaml"):
        (base / name).write_text("SECRET")
    return base


def test_hostile_companions_of_a_base_stay_where_they_are(words, checkpoint, tmp_path):
    base = private(shutil.copytree(checkpoint("qwen2_5_vl"), tmp_path / "base"))
    (base / "LICENSE").write_text("Apache")
    for name in ("code.py", "used.py"):
        (base / name).write_text("from .used import *\n" if name == "code.py" else "")
    tokenizer = base / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"auto_map": {"AutoTokenizer": "code.Tokens"}}))
    trained(*words("train.steps=1", f"model.path={base}"))
    out = tmp_path / "out"
    export.main(export.Options(run=str(tmp_path / "run"), out=str(out)))
    names = {path.name for path in out.iterdir()}
    assert not any("SECRET" in path.read_text(errors="ignore") for path in out.iterdir())
    assert {"LICENSE", "code.py", "used.py", "tokenizer.json", "config.json", "evs.json", "README.md"} <= names
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1


def test_a_hostile_run_folder_is_reported_and_exported_as_data(words, tmp_path, monkeypatch, capsys):
    trained(*words("train.steps=1", "model.lora.r=4"))
    run = tmp_path / "run"
    monkeypatch.setenv("HF_TOKEN", "SECRET")
    mark = tmp_path / "mark"
    (run / "machine.json").write_text(json.dumps({"<script>": "<b>", "command": "<i>"}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    options = {"run": str(run), "out": str(tmp_path / "out")}
    report.main(report.Options(run=str(run)))
    export.main(export.Options(**options, adapter=True))
    printed = capsys.readouterr()
    assert "metrics.jsonl:2: skipped an incomplete line" in printed.err and "give base_model=" in printed.out
    page = (run / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<i>" not in page
    assert "<h2>Time to first token" not in page and "<h2>Not measured" in page
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path) not in path.read_text(errors="ignore"), path
    saved = yaml.safe_load((run / "config.yaml").read_text())
    for change in (
        {"tracker": {"name": "${oc.env:HF_TOKEN}"}},
        {"method": {"_target_": "os.system", "command": f"touch {mark}"}},
        {"rate": {"_target_": "pathlib.Path.touch", "self": str(mark)}},
    ):
        (run / "config.yaml").write_text(yaml.safe_dump(saved | change))
        with pytest.raises(ValueError, match=r"config\.yaml|method|rate"):
            export.main(export.Options(**options | {"out": str(tmp_path / "other")}))
    assert not mark.exists() and not (tmp_path / "other").exists()


def test_a_hostile_name_of_a_curve_is_drawn_as_it_stands(tmp_path):
    for name in ("$\\frac{", "costs $5 or $6", "$^$", "_hidden", "a | b", "\\$"):
        scores = [{"rate": rate, "accuracy": 0.5} for rate in (0, 0.5)]
        (tmp_path / "own.json").write_text(json.dumps({"name": name, "data": "$x^", "scores": scores}))
        options = report.Options(results=[str(tmp_path / "own.json")], out=str(tmp_path / "own.png"), title=name)
        report.main(options)
        assert (tmp_path / "own.png").stat().st_size > 1000
