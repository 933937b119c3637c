"""A base model with code of its own is refused in one line: the code is not run, and nobody is asked to trust it."""

from __future__ import annotations

import json
import shutil

import pytest

from scripts import evaluate, generate

AUTO_MAPS = {  # part: (keys of its entry, key of the class, key in auto_map)
    "config.json": ((), "model_type", "AutoConfig"),
    "processor_config.json": ((), "processor_class", "AutoProcessor"),
    "video processor": (("video_processor",), "video_processor_type", "AutoVideoProcessor"),
}


@pytest.mark.parametrize("script", ["generate", "evaluate"])
@pytest.mark.parametrize("name", AUTO_MAPS)
def test_a_hostile_base_is_refused_without_a_question(checkpoint, questions, tmp_path, monkeypatch, script, name):
    base = shutil.copytree(checkpoint("qwen2_5_vl"), tmp_path / "base")
    (base / "code.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')\nclass Own: pass\n")
    scopes, kind, auto = AUTO_MAPS[name]
    path = base / ("config.json" if name == "config.json" else "processor_config.json")
    content = json.loads(path.read_text())
    node = content[scopes[0]] if scopes else content
    node |= {kind: "Own", "auto_map": {auto: "code.Own"}}
    path.write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to trust the code"))
    with pytest.raises(ValueError, match="it needs custom code, which is never run") as error:
        if script == "generate":
            generate.main(generate.Options(str(base), "Q"))
        else:
            evaluate.main(evaluate.Options(str(base), str(questions), workers=0))
    assert "\n" not in str(error.value) and not (tmp_path / "hacked").exists()
