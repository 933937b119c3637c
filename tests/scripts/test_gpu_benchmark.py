"""`benchmark.py gpu`: continues after a kill, skips what the machine lacks, and shows every result on its page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from contextlib import suppress
from math import prod
from pathlib import Path

import psutil
import pytest

from scripts.bench.gpu import schedule, suite
from scripts.bench.gpu.jobs import SHAPES, Job, jobs
from scripts.bench.gpu.page import write_page
from scripts.bench.models import build_shape
from scripts.bench.processes import run_limited
from scripts.bench.records import fingerprint, read_json, write_json
from tests.runs import ROOT


def benchmark(out: Path, *words: str) -> subprocess.Popen[str]:
    """`python scripts/benchmark.py gpu` on the CPU."""
    command = [
        sys.executable,
        ROOT / "scripts" / "benchmark.py",
        "gpu",
        "device=cpu",
        "shape=tiny",
        f"out={out}",
        *words,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def records(out: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Replaces the jobs by commands that are run in place of benchmark.py: name -> its body in Python."""

    def replace(**bodies: str) -> None:
        program = tmp_path / "scripts" / "benchmark.py"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            "import json, sys, time\n"
            "out = sys.argv[-1].partition('=')[2]\n"
            "def figures(passed):\n"
            "    result = {'passed': passed, 'failed': 0, 'skipped': 0, 'failures': []}\n"
            "    open(out, 'w').write(json.dumps({'result': result, 'options': {}}))\n"
            "exec(sys.argv[1])\n"
        )
        monkeypatch.setattr(schedule, "ROOT", tmp_path)
        planned = [Job("tests", name, (body,), 1.5) for name, body in bodies.items()]
        monkeypatch.setattr(schedule, "jobs", lambda *_: iter(planned))

    return replace


def run(out: Path, **options) -> dict[str, dict]:
    schedule.run(schedule.Options(out=str(out), device="cpu", shape="tiny", **options))
    return records(out)


def test_every_end_of_a_job_is_recorded_and_the_others_run(commands, tmp_path):
    refused = "sys.exit(print('error: too little memory', file=sys.stderr) or 2)"
    commands(refused=refused, broken="1 / 0", slow="time.sleep(30)", silent="pass", good="figures(7)")
    found = run(tmp_path / "out")
    assert {name: (record["status"], record.get("reason")) for name, record in found.items()} == {
        "refused": ("skipped", "too little memory"),
        "broken": ("failed", "ZeroDivisionError: division by zero"),
        "slow": ("failed", "not finished after 2 s"),
        "silent": ("failed", "it printed nothing"),
        "good": ("done", None),
    }
    page = (tmp_path / "out" / "page.md").read_text()
    assert "| refused | skipped | too little memory |" in page and "## GPU tests" in page


def test_a_finished_job_is_not_run_again_and_a_failed_one_is_tried_last(commands, tmp_path, capsys):
    commands(broken="1 / 0", good="figures(1)")
    before = run(tmp_path / "out")["good"]
    commands(broken="1 / 0", good="figures(1)", new="figures(2)")
    after = run(tmp_path / "out")
    assert after["good"] == before and after["new"]["result"]["passed"] == 2
    printed = capsys.readouterr().out.rpartition("3 jobs, 1 of them done")[2]
    assert printed.index("new ...") < printed.index("broken ...") and "good ..." not in printed


@pytest.mark.parametrize("changed", ["settings", "code", "device"])
def test_a_finished_job_is_run_again_once_what_it_depends_on_has_changed(commands, tmp_path, monkeypatch, changed):
    commands(good="figures(1)")
    run(tmp_path / "out")
    if changed == "code":
        monkeypatch.setattr(schedule, "fingerprint", lambda *_: "other")
    if changed == "device":
        monkeypatch.setattr(
            schedule, "machine", lambda: {"device": "x", "torch": "1", "transformers": "1", "commit": ""}
        )
    commands(good="figures(2)" if changed == "settings" else "figures(1)")
    program = tmp_path / "scripts" / "benchmark.py"
    program.write_text(program.read_text().replace("passed, 'failed'", "-passed, 'failed'"))
    assert run(tmp_path / "out")["good"]["result"]["passed"] < 0


def test_a_job_that_the_end_of_the_time_stops_leaves_no_record_and_the_next_call_runs_it(
    commands, tmp_path, monkeypatch
):
    monkeypatch.setattr(schedule, "MIN_SECONDS", 0.1)
    commands(first="figures(1)", slow="time.sleep(30)", last="figures(3)")
    assert set(run(tmp_path / "out", minutes=1 / 60)) <= {"first"}
    commands(first="figures(1)", slow="figures(2)", last="figures(3)")
    assert set(run(tmp_path / "out")) == {"first", "slow", "last"}


def test_without_a_device_everything_is_skipped_and_results_of_another_machine_stay(commands, tmp_path, monkeypatch):
    commands(good="figures(1)")
    before = run(tmp_path / "out")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    commands(good="figures(1)", new="figures(2)")
    monkeypatch.setattr(schedule, "fingerprint", lambda *_: "other")
    schedule.run(schedule.Options(out=str(tmp_path / "out")))
    after = records(tmp_path / "out")
    assert after["good"] == before["good"] and "no CUDA device" in after["new"]["reason"]


def test_a_second_call_in_the_same_folder_is_refused(tmp_path):
    write = (
        f"from pathlib import Path; from train.checkpoint.lock import lock; held = lock(Path({str(tmp_path)!r}), 'out')"
    )
    code = write + "; print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=r"out=.* is in use by process"):
        schedule.run(schedule.Options(out=str(tmp_path), device="cpu", shape="tiny"))
    holder.communicate(b"\n")


def test_the_page_shows_what_only_a_gpu_has(tmp_path):
    spans = {"vision": 1.0, "language_model": 2.0, "head": 1.0, "backward": 5.0, "optimizer": 1.0}
    row = {"seconds": 9.0, "over_ideal": 1.2, "mfu": 0.41, "language_mfu": 0.5, "tokens_per_s": 12.0, "spans_s": spans}
    row |= {"peak_gib": 10.0, "forecast_gib": 9.0}
    step = {"frozen": {"optimizer_s": 1.0, "after": {"0.75": row}, "before": {}}}
    operations = [{"name": "gemm<a|b>", "calls": 3, "seconds": 0.5, "share": 0.5}]
    profile = {"operations": operations, "synchronizations": 1, "synchronized_at": {"evs/pruning.py:7": 1}}
    tests = {"passed": 5, "failed": 1, "skipped": 2, "failures": ["tests.a::test_b"]}
    results = {"step": step, "profile": profile, "tests": tests}
    about = {"device": "NVIDIA H200", "torch": "2.11", "transformers": "5.17", "commit": ""}
    options = {"shape": "qwen2_5_vl_7b", "attention": "sdpa", "compile": True}
    for part, result in results.items():
        record = {"status": "done", "machine": about, "options": options, "result": result}
        write_json(tmp_path / f"{part}.json", record)
    write_page(tmp_path, [Job(part, part, (), 1) for part in (*results, "train")])
    page = (tmp_path / "page.md").read_text()
    assert "3 jobs on NVIDIA H200: torch 2.11, transformers 5.17, commit unknown." in page
    assert "| qwen2_5_vl_7b | frozen | sdpa, compiled | after the tower | 0.75 | 9.000 | 1.20 | 41.0% | 50.0% |" in page
    assert "| 50.0% | 10.0% | 10.00 | 0.90 |" in page and "| evs/pruning.py:7 | 1 |" in page
    assert "| gemm<a\\|b> | 3 |" in page and "| tests | 5 | 1 | 2 | tests.a::test_b |" in page
    assert "| train | not run yet |" in page


def test_names_are_unique_and_parts_are_selected():
    for shape in (None, "tiny"):
        planned = list(jobs(shape, True, Path("data")))
        assert len({job.name for job in planned}) == len(planned)
        assert {job.part for job in planned} == set(schedule.PARTS)


def test_the_served_models_have_room_for_a_whole_clip_and_its_question():
    for shape in SHAPES:
        [job] = (job for job in jobs(shape, True, Path("data")) if job.part == "serving")
        [flags] = (word for word in job.words if word.startswith("flags="))
        assert int(flags.split()[1]) > prod(build_shape(shape).grid) + 256


def test_a_record_is_replaced_whole_and_a_broken_one_counts_as_none(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    path.write_text('{"a": ')
    assert read_json(path) is None and read_json(tmp_path / "none.json") is None


def test_a_fingerprint_follows_every_file_of_code(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.bench.records.ROOT", tmp_path)
    (tmp_path / "a").mkdir()
    seen = set()
    for name in ("a/x.py", "a/y.yaml", "a/x.py"):
        (tmp_path / name).write_text(f"{len(seen)}")
        fingerprint.cache_clear()
        seen.add(fingerprint("a"))
    (tmp_path / "a" / "notes.txt").write_text("no code")
    fingerprint.cache_clear()
    assert len(seen) == 3 and fingerprint("a") in seen
    fingerprint.cache_clear()


def test_a_process_ends_at_its_limit_with_all_that_it_started(tmp_path):
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    assert run_limited([sys.executable, "-c", code], tmp_path / "log", 3, tmp_path) is None
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "log").read_text())).wait(timeout=20)


@pytest.mark.slow
def test_the_gpu_tests_are_counted_by_outcome(tmp_path):
    (tmp_path / "test_a.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\ndef test_good(): pass\ndef test_bad(): assert 0\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
    )
    (tmp_path / "test_b.py").write_text("raise RuntimeError('not to be imported')\n")
    found = suite.suite(suite.Options(folder=str(tmp_path)))
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    [failure] = found["failures"]
    assert failure.endswith("test_bad")


@pytest.mark.slow
def test_wheels_are_installed_without_an_index(tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "hjson-9.9-py3-none-any.whl", "w") as wheel:
        wheel.writestr("hjson.py", "")
        wheel.writestr("hjson-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: hjson\nVersion: 9.9\n")
        wheel.writestr("hjson-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("hjson-9.9.dist-info/RECORD", "")
    environment = {**os.environ, "PYTHON": str(tmp_path / "env" / "bin" / "python"), "PYTHONPATH": ""}
    command = ["bash", str(ROOT / "scripts" / "gpu_setup.sh"), "install", str(wheels)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1  # what is required is missing still
    assert "installed: hjson\n" in done.stdout and "required and missing: torch" in done.stdout
    assert "hjson" not in done.stdout.partition("optional and missing: ")[2].splitlines()[0]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_call_that_is_killed_leaves_whole_records_and_the_next_one_continues(tmp_path, number):
    first = benchmark(tmp_path, "parts=[tests,profile]")
    assert first.stdout is not None
    until = time.monotonic() + 300
    while "profile_tiny ..." not in first.stdout.readline():
        assert time.monotonic() < until and first.poll() is None
    first.send_signal(number)
    first.communicate()
    assert first.returncode != 0 and set(records(tmp_path)) == {"tests_kernels"}
    second = benchmark(tmp_path, "parts=[tests,profile]", "minutes=5")
    printed, _ = second.communicate()
    assert second.returncode == 0, printed
    assert records(tmp_path)["profile_tiny"]["status"] == "done"
    page = (tmp_path / "page.md").read_text()
    assert "| aten::mm |" in page and "the tests need a CUDA device" in page
