"""A virtual environment per framework. Packages that it lacks are imported from the benchmark's own environment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PINNED = ("torch", "torchvision")  # to the versions of the benchmark's environment


def build(folder: Path, requires: Sequence[str], empty: Sequence[str] = (), shared: Sequence[str] = ()) -> Path:
    """The folder of executables of an environment with the packages `requires`, built once. The modules `empty` are
    replaced by empty ones, and the packages `shared` are those of the benchmark's environment. ValueError if pip cannot
    install the packages."""
    if not requires:
        return Path(sys.executable).parent
    done, programs = folder / "installed.txt", folder / "bin"
    constraints = [f"{name}=={version(name)}" for name in PINNED]
    contents = "\n".join([*requires, *constraints, *empty, *shared])
    if done.exists() and done.read_text() == contents:
        return programs
    print(f"installing {', '.join(requires)} into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "shared.pth").write_text("".join(f"{path}\n" for path in ours))
    (folder / "constraints.txt").write_text("\n".join(constraints))
    pip = [str(programs / "python"), "-m", "pip", "--quiet"]
    if subprocess.run([*pip, "install", "--constraint", str(folder / "constraints.txt"), *requires]).returncode:
        raise ValueError(f"pip could not install {', '.join(requires)}; its output says why")
    for name in (*empty, *shared):
        subprocess.run([*pip, "uninstall", "--yes", name], check=True)
    for name in empty:
        (packages / f"{name}.py").write_text("")
    done.write_text(contents)
    return programs
