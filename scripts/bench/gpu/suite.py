"""The tests that need a GPU, counted."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

from scripts.bench.processes import reason, run_limited
from scripts.bench.timing import ROOT
from train.ranges import number


@dataclass
class Options:
    folder: str = "tests"  # whose files that mention the marker `gpu` are run
    marks: str = "gpu"  # pytest's -m
    processes: int = number(1, least=1)  # that share the tests, with pytest-xdist
    out: str | None = None  # JSON


def suite(options: Options) -> dict[str, Any]:
    """How many passed, failed and were skipped, and the names of those that failed. ValueError: pytest did not run."""
    files = [str(path) for path in sorted(Path(options.folder).rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    words = [sys.executable, "-m", "pytest", "-q", "-m", options.marks, *files]
    words += ["-n", str(options.processes)] if options.processes > 1 else []
    with TemporaryDirectory() as folder:
        report, log = Path(folder, "report.xml"), Path(folder, "log.txt")
        run_limited([*words, f"--junitxml={report}"], log, None, ROOT)
        print(log.read_text())
        if not report.exists():
            raise ValueError(f"pytest did not run: {reason(log.read_text())}")
        return _counted(ElementTree.parse(report).getroot())


def _counted(report: ElementTree.Element) -> dict[str, Any]:
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in report.iter("testcase"):
        kinds = {child.tag for child in case}
        state = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[state].append(f"{case.get('classname')}::{case.get('name')}")
    return {state: len(names) for state, names in found.items()} | {"failures": found["failed"]}
