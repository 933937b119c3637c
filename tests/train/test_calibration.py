"""An operation of the vision tower counts by the time that it takes on the device, the same for the whole of a run."""

from __future__ import annotations

import pytest

from scripts.bench.models import SHAPES, model_config, work
from tests.runs import composed, ended, started, trained
from train.checkpoint import manifest
from train.checkpoint.checkpoint import complete
from train.checks import check
from train.cost import operations as cost

MEASURED = ["train.tower_cost=measured", "train.token_budget=1024", "train.save_every=2"]


def test_the_tower_alone_is_weighed():
    config, batch = model_config(SHAPES["small"]), work(SHAPES["small"], 0.5)
    once, twice = (cost.training(config, batch, recomputed=["vision"], tower=each) for each in (1.0, 2.0))
    assert twice == (2 * once.vision, 2 * once.merger, once.language, once.head)
    views = [cost.training_in_views(config, [batch] * 2, cost.Course(base=True), tower=each) for each in (1.0, 2.0)]
    assert views[1].vision == 2 * views[0].vision and views[1].language == views[0].language


def test_it_needs_a_plan_by_cost():
    with pytest.raises(ValueError, match=r"train\.tower_cost=2 counts only where costs are planned"):
        check(composed("+experiment=qwen_evs_uptrain", "data.train=x", "train.tower_cost=2"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "nemotron_h_omni"])
def test_what_was_measured_stays_with_the_run(words, tmp_path, capsys, family):
    def counted() -> str:
        return manifest.read(complete(tmp_path / "run" / "checkpoints")[-1]).shape["plan"]["tower_cost"]

    trained(*words(*MEASURED, "train.steps=2", family=family))
    assert "TFLOP/s in the vision tower" in capsys.readouterr().out
    first = counted()
    assert 0.01 < float(first) < 100
    trained(*words(*MEASURED, "train.steps=4", "resume=auto", family=family))
    assert "TFLOP/s" not in capsys.readouterr().out and counted() == first


@pytest.mark.slow
def test_it_is_measured_before_zero3_would_shard_what_is_timed(words, tmp_path):
    status, printed = ended(started(*words(*MEASURED, "engine=zero3", "train.steps=1")))
    assert status == 0 and "TFLOP/s in the vision tower" in printed, printed[-2000:]
