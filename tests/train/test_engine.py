"""A process finds its place whatever started it."""

from __future__ import annotations

import socket

import pytest

from train.distributed import check_world, first_host, free_port, rank_environment, tasks_per_node

SRUN = {
    "SLURM_JOB_ID": "42",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[007-009]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_task_of_srun_is_a_rank():
    found = rank_environment(SRUN, gpus=8)
    assert found["RANK"] == "3" and found["WORLD_SIZE"] == "5"
    assert found["LOCAL_RANK"] == "1" and found["LOCAL_WORLD_SIZE"] == "2"
    assert (
        found["MASTER_ADDR"] == "gpu007"
        and found["MASTER_PORT"] == rank_environment({**SRUN, "SLURM_PROCID": "0"}, 8)["MASTER_PORT"]
    )


def test_a_task_that_sees_its_own_gpu_alone_takes_it():
    assert rank_environment(SRUN, gpus=1)["LOCAL_RANK"] == "0"


@pytest.mark.parametrize("env", [{}, {"SLURM_JOB_ID": "42", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}])
def test_a_process_that_stands_alone_has_no_place(env):
    assert rank_environment(env, gpus=0) == {}


def test_a_launcher_that_has_set_the_rank_wins():
    assert rank_environment({**SRUN, "RANK": "0"}, gpus=0) == {}


def test_the_local_executor_of_submitit_is_a_launcher_too():
    env = {f"SUBMITIT_LOCAL_{name}": value for name, value in {"NTASKS": "2", "GLOBALID": "1", "LOCALID": "1"}.items()}
    assert rank_environment({**env, "SUBMITIT_LOCAL_JOB_ID": "77"}, gpus=0)["RANK"] == "1"


@pytest.mark.parametrize(("text", "tasks"), [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2])])
def test_tasks_per_node_are_spelled_out(text, tasks):
    assert tasks_per_node(text) == tasks


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[007-009,012],login1", "gpu007"), ("a1,b[1-2]", "a1"), ("n[3,5]", "n3"), ("one", "one")]
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(
        ValueError, match="8 processes were started on a machine with 4 GPUs: start one process per GPU"
    ):
        check_world("ddp", 16, 8, 4)


def test_runs_beside_each_other_take_ports_of_their_own():
    with socket.socket() as one:
        one.bind(("127.0.0.1", free_port()))
        one.listen()
        assert free_port() != one.getsockname()[1]
