"""lmms-eval's own model of Qwen3-VL on the local task, pruned by one added line. Runs in lmms-eval's environment.

The argument is a JSON file: the arguments of the model, rate, task (a folder), out (a JSON file for the answers).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models.chat.qwen3_vl import Qwen3_VL
from lmms_eval.tasks import TaskManager
from qwen_vl_utils import vision_process
from torchvision.transforms import v2

from evs.transformers import enable_pruning

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    vision_process.transforms = v2  # resize as transformers' processor does
    lm = Qwen3_VL(**job["arguments"])
    enable_pruning(lm.model, rate=job["rate"], scorer_dtype="float32")
    manager = TaskManager("ERROR", include_path=job["task"])
    results = simple_evaluate(lm, tasks=["evs_letters"], batch_size=1, task_manager=manager, log_samples=True)
    samples = sorted(results["samples"]["evs_letters"], key=lambda sample: sample["doc_id"])
    Path(job["out"]).write_text(json.dumps([sample["filtered_resps"][0].strip() for sample in samples]))
