"""One environment a peer, embedded over the one that runs the benchmark: all share one torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

SHARED = ("torch", "torchvision")  # held at the benchmark's own versions


def build(folder: Path, requires: Sequence[str], empty: Sequence[str] = ()) -> Path:
    """The folder of programs of an environment that holds `requires`; built once. ValueError: why it cannot be had.

    Modules named by `empty` are replaced by empty ones.
    """
    if not requires:
        return Path(sys.executable).parent
    done, programs = folder / "installed.txt", folder / "bin"
    wanted = "\n".join([*requires, *_held()])
    if not (done.exists() and done.read_text() == wanted):
        print(f"installing {', '.join(requires)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        _lay_over(folder)
        _install(programs / "python", folder / "constraints.txt", requires)
        _empty(folder, empty)
        done.write_text(wanted)
    return programs


def _held() -> list[str]:
    return [f"{name}=={version(name)}" for name in SHARED]


def _lay_over(folder: Path) -> None:
    """Lets the environment see the packages of this one after its own."""
    below = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (_packages(folder) / "below.pth").write_text("".join(f"{path}\n" for path in below))


def _packages(folder: Path) -> Path:
    [own] = folder.glob("lib/python3*/site-packages")
    return own


def _empty(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
        (_packages(folder) / f"{name}.py").write_text("")


def _install(python: Path, constraints: Path, requires: Sequence[str]) -> None:
    constraints.write_text("".join(f"{each}\n" for each in _held()))
    words = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *requires]
    pip = subprocess.run(words, capture_output=True, text=True)
    if pip.returncode:
        errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR:")]
        raise ValueError(f"cannot be installed: {(errors or ['pip failed'])[-1].removeprefix('ERROR: ')}")
