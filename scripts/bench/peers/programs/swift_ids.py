"""A plugin of ms-swift: it takes the media tokens' ids for those of the released checkpoints, ours has its own."""

from __future__ import annotations

import sys

from swift.template.templates.qwen import Qwen2VLTemplate
from transformers import AutoTokenizer

_ids = AutoTokenizer.from_pretrained(sys.argv[sys.argv.index("--model") + 1]).convert_tokens_to_ids
Qwen2VLTemplate.image_token_id, Qwen2VLTemplate.video_token_id = _ids("<|image_pad|>"), _ids("<|video_pad|>")
