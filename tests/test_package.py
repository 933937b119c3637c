"""What `pip install evs-uptrain` brings into somebody else's environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.runs import ROOT

BUILD = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"
ASK = """\
import importlib.util, json, sys
from importlib.metadata import entry_points, requires
import evs, evs.families, evs.policy, evs.serving.vllm
heavy = sorted({"transformers", "vllm", "hydra", "datasets"} & sys.modules.keys())
named = [n for n in ("train", "data", "scripts", "configs", "tests") if importlib.util.find_spec(n)]
plugins = [each.value for each in entry_points(group="vllm.general_plugins", name="evs")]
needed = [each for each in requires("evs-uptrain") if "extra" not in each]
print(json.dumps([evs.__file__.startswith(sys.prefix), heavy, named, plugins, needed]))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of the wheel and the sdist, built from the files that git knows."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_an_installation_is_the_library_and_its_plugin(built, tmp_path, kind):
    (package,) = built.glob(kind)
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    ours = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    # Torch and setuptools are this environment's; its own .pth files, ours among them, are not read from there.
    (ours / "lender.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--ignore-installed", "--no-build-isolation", str(package)], check=True, cwd=tmp_path)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    asked = subprocess.run([python, "-c", ASK], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == '[true, [], [], ["evs.serving.vllm:register"], ["torch>=2.6"]]'
