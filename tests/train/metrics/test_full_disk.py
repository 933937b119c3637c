"""A full disk ends a run in one line that names the file, wherever the run was writing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runs import trained
from train.jsonl import append_lines
from train.metrics.sinks import start_tensorboard


@pytest.fixture
def mount(tmp_path) -> Iterator[Callable[..., Path]]:
    """Mount a file system of the given options (size, nr_inodes), which only root may do."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(*options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")
        return folder

    yield mounted
    subprocess.run(["umount", "-l", folder], capture_output=True)


def test_lines_that_do_not_fit_are_named_and_leave_the_file_unchanged(mount):
    file = mount("size=16k") / "metrics.jsonl"
    append_lines(file, [{"step": 1}])
    with pytest.raises(
        ValueError, match=r"^disk full: \S+/metrics\.jsonl cannot be written: free space .*resume=auto$"
    ):
        append_lines(file, [{"step": 2, "note": "x" * 32768}])
    assert file.read_text() == '{"step": 1}\n'


def test_used_up_inodes_are_told_from_a_full_disk(mount):
    folder = mount("size=1m", "nr_inodes=2")
    append_lines(folder / "metrics.jsonl", [{"step": 1}])
    with pytest.raises(ValueError, match=r"^no inodes left: \S+/quarantine\.jsonl cannot be written: remove files"):
        append_lines(folder / "quarantine.jsonl", [{"id": "a"}])


def test_event_files_that_do_not_fit_name_their_folder(mount):
    sink = start_tensorboard(mount("size=16k"), 0)
    with pytest.raises(ValueError, match=r"^disk full: \S+/tensorboard cannot be written: free space"):
        for step in range(400):
            sink.write(step, {f"loss/{name}": 1.0 for name in range(10)})


def test_a_run_that_cannot_write_its_configuration_says_so_before_training(mount, words):
    with pytest.raises(ValueError, match=r"^disk full: \S+ cannot be written: free space") as error:
        trained(*words(run_dir=mount("size=4k") / "run"))
    assert "\n" not in str(error.value)
