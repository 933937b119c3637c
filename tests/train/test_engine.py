"""A process finds its place whatever started it."""

from __future__ import annotations

import socket

import pytest
import torch

from tests.evs.models import BUILDERS
from tests.runs import composed
from train.checks import check
from train.distributed import (
    Mesh,
    check_sequence_parallel,
    check_world,
    data_parallel_size,
    first_host,
    free_port,
    rank_environment,
    tasks_per_node,
)

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


def test_consecutive_ranks_share_a_batch():
    meshes = [Mesh(4, rank, sequence_size=2) for rank in range(4)]
    assert [(mesh.data_size, mesh.data_rank, mesh.leads) for mesh in meshes] == [
        *((2, 0, leads) for leads in (True, False)),
        *((2, 1, leads) for leads in (True, False)),
    ]


def test_a_group_size_that_does_not_divide_the_processes_is_refused(words):
    config = composed(*words("engine=ddp", "engine.sequence_parallel=3")).engine
    with pytest.raises(
        ValueError, match="sequence_parallel=3 does not divide the number of processes, 8: use one of 1, 2, 4, 8"
    ):
        data_parallel_size(config, 8)


def test_a_group_size_that_does_not_divide_the_heads_is_refused():
    with torch.device("meta"):
        config = BUILDERS["qwen2_5_vl"]().config
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 28, 4
    for size in (1, 2, 4, 28):
        check_sequence_parallel(size, config)
    with pytest.raises(ValueError, match="28 attention heads and 4 key heads of qwen2_5_vl: use one of 1, 2, 4, 28"):
        check_sequence_parallel(8, config)


@pytest.mark.parametrize("family", ["qwen3_5", "nemotron_h_omni"])
def test_recurrent_layers_are_not_shared(family):
    with torch.device("meta"):
        config = BUILDERS[family]().config
    with pytest.raises(ValueError, match=f"{config.model_type} has recurrent layers"):
        check_sequence_parallel(2, config)


def test_layers_of_sliding_attention_are_not_shared():
    with torch.device("meta"):
        config = BUILDERS["qwen2_5_vl"]().config
    config.text_config.layer_types[-1] = "sliding_attention"
    check_sequence_parallel(1, config)
    with pytest.raises(ValueError, match=r"qwen2_5_vl has sliding_attention layers.*use engine.sequence_parallel=1"):
        check_sequence_parallel(2, config)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("engine=none", "needs several processes: use engine=ddp or zero1..zero3"),
        ("model.attention=flex_attention", "cannot keep packed samples apart: use sdpa or flash"),
        ("model.attention=eager", "cannot keep packed samples apart: use sdpa or flash"),
        ("model.compile=true", "cannot trace: remove one of them"),
    ],
)
def test_what_groups_do_not_support_is_refused(words, word, message):
    with pytest.raises(ValueError, match=f"engine.sequence_parallel=2.*{message}"):
        check(composed(*words("engine=ddp", "engine.sequence_parallel=2", word)))
