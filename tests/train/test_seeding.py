"""Everything random follows `seed`: the same command is the same run, to the bit; another seed is another run."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import cut_off, trained
from tests.train.test_run import metrics
from train.checkpoint.checkpoint import complete
from train.seeding import seed_draws

LORA = ["model.lora.r=4", "model.lora.dropout=0.5", "optim.lr=1e-2"]
FIXED = ["engine.precision=fp32", "rate=constant", "rate.rate=0.5", "train.save_every=2"]


def weights(run_dir) -> dict[str, torch.Tensor]:
    (file,) = (complete(run_dir / "checkpoints")[-1] / "model").glob("*.safetensors")
    return load_file(file)


def equal(one, other) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("method", [[], LORA], ids=["full", "lora"])
def test_two_runs_of_one_command_are_equal_to_the_bit(words, tmp_path, method):
    for name in ("one", "two"):
        torch.manual_seed(hash(name))  # whatever the process drew before
        trained(*words(*FIXED, *method, "train.steps=2", run_dir=tmp_path / name))
    assert equal(tmp_path / "one", tmp_path / "two")
    assert metrics(tmp_path / "one", "loss") == metrics(tmp_path / "two", "loss")


@pytest.mark.slow
def test_lora_follows_the_seed(words, tmp_path):
    for seed in (1, 2):
        trained(*words(*FIXED, *LORA, "train.steps=1", f"seed={seed}", run_dir=tmp_path / str(seed)))
    assert not equal(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_a_resumed_lora_run_drops_out_what_the_uninterrupted_one_does(words, tmp_path):
    trained(*words(*FIXED, *LORA, run_dir=tmp_path / "whole"))
    cut_off(tmp_path / "whole", tmp_path / "broken", 2)
    torch.manual_seed(99)
    trained(*words(*FIXED, *LORA, "resume=auto", run_dir=tmp_path / "broken"))
    assert equal(tmp_path / "whole", tmp_path / "broken")


def test_draws_are_a_function_of_the_key_alone():
    def drawn(*key):
        seed_draws(*key)
        return torch.rand(3)

    first = drawn("dropout", 0, 1)
    torch.rand(5)
    assert torch.equal(first, drawn("dropout", 0, 1))
    assert not torch.equal(first, drawn("dropout", 0, 2))
