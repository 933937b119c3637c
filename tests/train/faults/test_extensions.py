"""A lock file of an extension's build is waited for while its holder lives, and no longer."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from train.faults.extensions import wait_for_lock


@pytest.fixture
def lock(tmp_path) -> Path:
    return tmp_path / "deepspeed_shm_comm" / "lock"


def test_the_lock_of_a_killed_build_is_removed(lock, capsys):
    lock.parent.mkdir()
    lock.touch()
    wait_for_lock(lock, 60, by_existence=True)
    assert not lock.exists() and f"{lock}: removed, a killed build had left it" in capsys.readouterr().out


def test_the_lock_file_that_a_build_leaves_is_kept_where_torch_locks_the_open_file(lock, capsys):
    lock.parent.mkdir()
    lock.touch()
    wait_for_lock(lock, 0, by_existence=False)
    assert lock.exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("by_existence", [True, False])
def test_the_lock_of_a_build_that_runs_is_named_when_the_time_is_over(lock, by_existence):
    lock.parent.mkdir()
    held = os.open(lock, os.O_CREAT | os.O_EXCL)  # as torch does
    with pytest.raises(ValueError, match=f"{lock} is held by process {os.getpid()}: end that build, then remove"):
        wait_for_lock(lock, 0, by_existence=by_existence)
    os.close(held)
    assert lock.exists()


def test_a_lock_on_a_network_file_system_is_kept_since_another_machine_may_hold_it(lock, monkeypatch):
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: [SimpleNamespace(mountpoint="/", fstype="nfs4")])
    lock.parent.mkdir()
    lock.touch()
    with pytest.raises(ValueError, match=f"{lock} is held by a dead process or another machine: end that build"):
        wait_for_lock(lock, 0, by_existence=True)
    assert lock.exists()


def test_without_a_lock_nothing_is_waited_for(lock):
    wait_for_lock(lock, 0, by_existence=True)
