"""Write a small random checkpoint of a supported family: a stock Hugging Face folder with tokenizer and processor.

    python scripts/make_tiny_model.py family=qwen2_5_vl out=DIR [seed=0] [sizes.text_layers=3 ...]

It has the same parts as the originals on the Hub: windowed and full attention in the vision tower, deepstack levels,
gated DeltaNet layers, grouped key-value heads, special tokens and chat template.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers as hf

from scripts.tiny import glm, nemotron, qwen
from scripts.tiny.sizes import Sizes
from train import cli
from train.experts import publish_experts
from train.ranges import number


class Family(Protocol):
    def parts(self, size: Sizes, /) -> tuple[Any, Any, Any]:
        """Tokenizer, configuration and processor."""


FAMILIES: dict[str, Family] = {**qwen.FAMILIES, **glm.FAMILIES, "nemotron_h_omni": nemotron}


@dataclass(frozen=True)
class Options:
    # qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe, glm4v, glm4v_moe or nemotron_h_omni
    family: str
    out: Path  # a new folder
    seed: int = number(0, least=0, below=2**63)  # of the weights
    sizes: Sizes = field(default_factory=Sizes)  # widths and depths, as sizes.text_layers=3


def make(family: str, out: Path, seed: int = 0, **sizes: Any) -> Path:
    """Write a checkpoint and return its folder. `sizes` are fields of Sizes. ValueError for a bad family or size."""
    if family not in FAMILIES:
        raise ValueError(f"unsupported model family {family!r}; supported: {', '.join(FAMILIES)}")
    size = Sizes(**sizes)
    if size.text_width % (32 * size.text_heads):
        raise ValueError(f"text_width={size.text_width} must be a multiple of 32 x {size.text_heads} text_heads")
    tokenizer, config, processor = FAMILIES[family].parts(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForImageTextToText.from_config(config)
    model.generation_config = hf.GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.convert_tokens_to_ids([tokenizer.eos_token, "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    publish_experts(Path(out), config)
    processor.save_pretrained(out)
    return Path(out)


def main(options: Options) -> None:
    out = make(options.family, options.out, options.seed, **asdict(options.sizes))
    weights = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{out}: {options.family}, {weights / 4e6:.1f} M parameters")


if __name__ == "__main__":
    cli.run(main, Options)
