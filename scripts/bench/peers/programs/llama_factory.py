"""Full fine-tuning by LLaMA-Factory. The argument is a JSON file of its own arguments."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llamafactory.data.template import TEMPLATES
from llamafactory.train.tuner import run_exp
from pruning import callbacks

if __name__ == "__main__":
    TEMPLATES["qwen2_vl"].format_assistant.slots = ["{{content}}<|im_end|>"]  # no label on the line break after it
    run_exp(json.loads(Path(sys.argv[1]).read_text()), callbacks=callbacks())
