"""Which files of the base model travel with exported weights."""

from __future__ import annotations

import json

from train.export.weights import copy_companions


def test_code_that_the_configuration_names_is_copied_with_its_imports_and_nothing_else(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    (base / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "own.Own"}}))
    (base / "own.py").write_text("from .helper import x\n")
    for name in ("helper.py", "other.py", "notes.txt", "LICENSE"):
        (base / name).write_text("x = 1\n")
    copy_companions(base, out)
    assert {path.name for path in out.iterdir()} == {"config.json", "own.py", "helper.py", "LICENSE"}
