"""A plug-in of ms-swift: pruning, and what makes its batches equal to ours."""

from __future__ import annotations

import sys
from typing import Any

from pruning import RATE, EnablePruning
from swift.callbacks import TrainerCallback, callbacks_map
from swift.template import TEMPLATE_MAPPING
from swift.template.templates.qwen import Qwen2VLTemplate
from transformers import AutoTokenizer

# ms-swift takes the ids of media tokens for those of the released checkpoints; ours has its own.
_ids = AutoTokenizer.from_pretrained(sys.argv[sys.argv.index("--model") + 1]).convert_tokens_to_ids
Qwen2VLTemplate.image_token_id, Qwen2VLTemplate.video_token_id = _ids("<|image_pad|>"), _ids("<|video_pad|>")
TEMPLATE_MAPPING["qwen2_5_vl"].suffix = ["<|im_end|>"]  # no label on the line break after it


class SwiftPruning(EnablePruning):
    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(trainer.template.processor)
        self.template = trainer.template

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        self.template.remove_post_encode_hook()  # it would embed the videos before the model's forward


callbacks_map["pruning"] = TrainerCallback if RATE == "0" else SwiftPruning
