"""transformers' Trainer on every rank: four steps, and the last two of them again from a checkpoint.

`torchrun -m tests.evs.ddp_trainer FOLDER`: each rank writes what both runs logged to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.evs.test_transformers_trainer import logged, train

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    whole = train(folder / "whole")
    resumed = train(folder / "resumed", resume=folder / "whole" / "checkpoint-2")
    logs = {name: [logged(run, name) for run in (whole, resumed)] for name in ("pruning_rate", "kept_fraction", "loss")}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps([type(whole.model_wrapped).__name__, logs]))
