"""An average of the weights is kept beside them, survives a resume, and is exported on request."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from scripts import export
from tests.runs import composed, cut_off, trained
from train.checkpoint.checkpoint import complete
from train.checks import check
from train.export.weights import weight_shapes

EMA = ["engine.precision=fp32", "train.ema=0.75", "train.save_every=1", "train.keep=9", "optim.lr=1e-2"]


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("more", [["model.freeze=[vision]"], ["model.lora.r=4"]], ids=["full", "lora"])
def test_the_average_is_the_recursion_over_the_saved_weights(words, tmp_path, more):
    trained(*words(*EMA, *more, "train.steps=3"))
    first, *others = complete(tmp_path / "run" / "checkpoints")
    average = weights(first / "ema")
    for checkpoint in others:
        now = weights(checkpoint / "model")
        average = {name: 0.75 * average[name] + 0.25 * now[name] for name in now}
    saved = weights(others[-1] / "ema")
    assert saved.keys() == average.keys() and any(not torch.equal(saved[name], now[name]) for name in now)
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_resumed_average_is_the_uninterrupted_ones(words, tmp_path):
    trained(*words(*EMA, run_dir=tmp_path / "whole"))
    cut_off(tmp_path / "whole", tmp_path / "broken", 2)
    trained(*words(*EMA, "resume=auto", run_dir=tmp_path / "broken"))
    one, other = (weights(complete(tmp_path / name / "checkpoints")[-1] / "ema") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_average_is_exported_on_request(words, tmp_path):
    config = trained(*words(*EMA, "train.steps=2"))
    export.main(export.Options(run=config.run_dir, out=str(tmp_path / "own"), ema=True))
    export.main(export.Options(run=config.run_dir, out=str(tmp_path / "last")))
    own, last = weights(tmp_path / "own"), weights(tmp_path / "last")
    assert weight_shapes(tmp_path / "own") == weight_shapes(tmp_path / "last")
    assert any(not torch.equal(own[name], last[name]) for name in own)
    with pytest.raises(ValueError, match=r"holds .* ema: give a new folder"):
        export.main(export.Options(run=config.run_dir, out=str(tmp_path / "own")))


@pytest.mark.slow
def test_an_average_that_was_not_kept_is_refused(words, tmp_path):
    config = trained(*words("train.steps=1"))
    with pytest.raises(ValueError, match=r"ema=true: .* holds no average of the weights: train with train.ema=0.999"):
        export.main(export.Options(run=config.run_dir, out=str(tmp_path / "out"), ema=True))


def test_an_average_of_sharded_weights_is_refused(words):
    with pytest.raises(
        ValueError, match=r"train.ema=0.9 needs all weights on every rank: use engine=none or engine=ddp"
    ):
        check(composed(*words("train.ema=0.9", "engine=zero2")))
