"""Two hosts, as network namespaces: torchrun's rendezvous between them, and five steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.test_run import metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_two_hosts_train_five_steps(hosts, words, tmp_path):
    # Namespaces share a host name, by which torchrun would find out who hosts the store.
    rendezvous = f"--nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint={min(hosts.values())}:29400"
    command = [str(ROOT / "train" / "run.py"), *words("train.steps=5", "engine=ddp", "train.accumulation=1")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "veth0"}
    started = []
    for name, address in hosts.items():
        inside = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *rendezvous.split()]
        log = (tmp_path / name).open("wb")
        inside += [f"--local-addr={address}", f"--rdzv-conf=is_host={int(address == min(hosts.values()))}"]
        started.append(subprocess.Popen([*inside, *command], env=environment, stdout=log, stderr=log))
    try:
        statuses = [process.wait(240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert statuses == [0, 0], [(tmp_path / name).read_text()[-2000:] for name in hosts]
    assert metrics(tmp_path / "run", "step") == [1, 2, 3, 4, 5]
