"""The outcome of the tests that need a GPU."""

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
    folder: str = "tests"  # files in it that use the marker `gpu` are run
    marks: str = "gpu"  # pytest's -m
    processes: int = number(1, least=1)  # of pytest-xdist
    out: str | None = None  # JSON file for the figures


def suite(options: Options) -> dict[str, Any]:
    """Numbers of passed, failed and skipped tests, and names of failed ones. ValueError if pytest did not run."""
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
    by_outcome: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in report.iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        by_outcome[outcome].append(f"{case.get('classname')}::{case.get('name')}")
    return {outcome: len(names) for outcome, names in by_outcome.items()} | {"failures": by_outcome["failed"]}
