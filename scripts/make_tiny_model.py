"""A small random checkpoint of a supported family: a stock Hugging Face folder with tokenizer and processor.

    python scripts/make_tiny_model.py family=qwen2_5_vl out=DIR [seed=0] [sizes.text_layers=3 ...]

It has in small what the hub's originals have: windowed and full attention in the vision tower, deepstack
levels, gated DeltaNet layers, grouped key-value heads, the special tokens, the chat template.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from scripts.tiny import nemotron
from train import cli
from train.experts import publish_experts

SPECIALS: tuple[str, ...] = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
# Words that become one token each, with and without a space before them; all else is spelt in bytes.
WORDS = """
system user assistant You are a helpful assistant . ? : , the is was at in end of what What which Which that
how How many times did it first last left right top bottom color colour square ring lamp upper lower At moved blinked
red green blue yellow cyan magenta orange purple white black pink brown gray zero one two three four five
six seven eight nine ten yes no video image Describe happens person doing Answer with option letter directly
changed seconds
"""
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if default_system and loop.first and message.role != 'system' -%}
        {{- '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if thinks and loop.last and message.role == 'assistant' -%}
        {{- '<think>\\n\\n</think>\\n\\n' -}}
    {%- endif -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' or 'video' in part -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if thinks -%}
        {{- '<think>\\n' if enable_thinking is not defined or enable_thinking else '<think>\\n\\n</think>\\n\\n' -}}
    {%- endif -%}
{%- endif -%}
"""


@dataclass
class Sizes:
    """Widths and depths. Text heads are a multiple of 32 wide: rotary sections and servers' kernels ask it."""

    text_width: int = 256
    text_layers: int = 4
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp: int = 512
    vision_width: int = 128
    vision_depth: int = 4
    vision_heads: int = 4
    vision_mlp: int = 256
    patch: int | None = None  # pixels of a patch's side; None: the family's
    full_attention: bool = False  # in every vision block, where the family has windows
    init: float = 0.02  # standard deviation of the random weights
    vocabulary: int = 768
    experts: int = 4  # of the mixture-of-experts family
    tied: bool = False  # input and output embeddings are one matrix


@dataclass(frozen=True)
class Options:
    family: str  # qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe or nemotron_h_omni
    out: Path  # a new folder
    seed: int = 0  # of the weights
    sizes: Sizes = field(default_factory=Sizes)  # widths and depths, as sizes.text_layers=3


@dataclass(frozen=True)
class Family:
    """How a family names its classes, and where its configuration differs from its sisters'."""

    name: str  # of the classes in transformers
    processor: str
    video_processor: str
    patch: int
    default_system: str
    image_area: tuple[int, int]  # smallest and largest, in pixels
    video_area: tuple[int, int]  # of a frame for Qwen2.5-VL, of all frames together for Qwen3-VL
    text: Callable[[Sizes], dict[str, Any]]
    vision: Callable[[Sizes], dict[str, Any]]
    thinks: bool = False  # its chat template writes a thought, empty where there is none, before the last answer


@dataclass(frozen=True)
class Other:
    """A family that has little in common with Qwen's, made in a file of its own."""

    made: Any  # the module with its `config`, `processor` and `SPECIALS`
    patch: int


def make(family: str, out: Path, seed: int = 0, **sizes: Any) -> Path:
    """The folder `out`, holding the checkpoint; `sizes` are fields of Sizes. ValueError: bad family or size."""
    if family not in FAMILIES:
        raise ValueError(f"unsupported model family {family!r}; supported: {', '.join(FAMILIES)}")
    spec, size = FAMILIES[family], Sizes(**sizes)
    if size.text_width % (32 * size.text_heads):
        raise ValueError(f"text_width={size.text_width} must be a multiple of 32 x {size.text_heads} text_heads")
    tokenizer, config, processor = _parts(spec, size, size.patch or spec.patch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForImageTextToText.from_config(config)
    model.generation_config = hf.GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    publish_experts(Path(out), config)
    processor.save_pretrained(out)
    return Path(out)


def _parts(spec: Family | Other, size: Sizes, patch: int) -> tuple[Any, Any, Any]:
    """Tokenizer, configuration and processor."""
    if isinstance(spec, Other):
        tokenizer = _tokenizer(size.vocabulary, (*SPECIALS, *spec.made.SPECIALS))
        return tokenizer, spec.made.config(size, tokenizer, patch), spec.made.processor(tokenizer, patch)
    tokenizer = _tokenizer(size.vocabulary, SPECIALS)
    return tokenizer, _config(spec, size, tokenizer), _processor(spec, tokenizer, patch)


def _config(spec: Family, size: Sizes, tokenizer: Any) -> Any:
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.text_width,
        "intermediate_size": size.text_mlp,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.text_heads,
        "num_key_value_heads": size.text_kv_heads,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": size.tied,
        "initializer_range": size.init,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        **spec.text(size),
    }
    vision = {
        "depth": size.vision_depth,
        "hidden_size": size.vision_width,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "out_hidden_size": size.text_width,
        "patch_size": size.patch or spec.patch,
        "initializer_range": size.init,
        **spec.vision(size),
    }
    return getattr(hf, f"{spec.name}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=size.tied,
        dtype="float32",
    )


def _tokenizer(vocabulary: int, specials: tuple[str, ...]) -> Any:
    """Byte-level BPE of the Qwen2 kind with at most `vocabulary` tokens, its merges learnt from WORDS."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = hf.Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator([text for word in WORDS.split() for text in (word, f" {word}")], trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learnt["merges"]]
    known = {token: len(learnt["vocab"]) + place for place, token in enumerate(specials)}
    return hf.Qwen2Tokenizer(
        vocab=learnt["vocab"] | known,
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens=list(specials),
        model_max_length=32768,
    )


def _processor(spec: Family, tokenizer: Any, patch: int) -> Any:
    shared: dict[str, Any] = {  # images and videos alike
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image = hf.Qwen2VLImageProcessor(size=_edges(spec.image_area), **shared)
    video = getattr(hf, spec.video_processor)(size=_edges(spec.video_area), **shared)
    settings = f"{{%- set default_system = {spec.default_system!r} -%}}{{%- set thinks = {spec.thinks} -%}}"
    template = f"{settings}\n{CHAT_TEMPLATE}"
    return getattr(hf, spec.processor)(image, tokenizer, video, chat_template=template)


def _edges(area: tuple[int, int]) -> dict[str, int]:
    return {"shortest_edge": area[0], "longest_edge": area[1]}  # upstream's names; the values are areas


def _text_qwen2_5(size: Sizes) -> dict[str, Any]:
    return {"rope_parameters": _rope(size, (4, 6, 6)), "rms_norm_eps": 1e-6}


def _vision_qwen2_5(size: Sizes) -> dict[str, Any]:
    step = 1 if size.full_attention else 2  # every second block, the last among them
    full = range(size.vision_depth - 1, -1, -step)
    return {"fullatt_block_indexes": sorted(full), "window_size": 112, "tokens_per_second": 2}


def _text_qwen3(size: Sizes) -> dict[str, Any]:
    head = size.text_width // size.text_heads
    return {"rope_parameters": _rope(size, (6, 5, 5)) | {"mrope_interleaved": True}, "head_dim": head}


def _text_qwen3_moe(size: Sizes) -> dict[str, Any]:
    mixture = {"num_experts": size.experts, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "norm_topk_prob": True}
    return _text_qwen3(size) | mixture | {"moe_intermediate_size": size.text_mlp // 8}


def _text_qwen3_5(size: Sizes) -> dict[str, Any]:
    """Gated DeltaNet but in every fourth layer and the last; a quarter of a head rotates, its pairs dealt in turn."""
    head, last = size.text_width // size.text_heads, size.text_layers - 1
    pairs = head // 8
    sections = [len(range(axis, pairs, 3)) for axis in range(3)]
    rope = {"rope_type": "default", "rope_theta": 1e7, "mrope_section": sections, "mrope_interleaved": True}
    full = [layer % 4 == 3 or layer == last for layer in range(size.text_layers)]
    return {
        "head_dim": head,
        "rope_parameters": rope | {"partial_rotary_factor": 0.25},
        "layer_types": ["full_attention" if each else "linear_attention" for each in full],
        "linear_num_key_heads": size.text_kv_heads,
        "linear_num_value_heads": size.text_heads,
        "linear_key_head_dim": head,
        "linear_value_head_dim": head,
        "mamba_ssm_dtype": "float32",  # of the states in a server
    }


def _text_qwen3_5_moe(size: Sizes) -> dict[str, Any]:
    mixture = {"num_experts": size.experts, "num_experts_per_tok": 2, "moe_intermediate_size": size.text_mlp // 8}
    return _text_qwen3_5(size) | mixture | {"shared_expert_intermediate_size": size.text_mlp // 8}


def _vision_qwen3(size: Sizes) -> dict[str, Any]:
    levels = range(min(size.vision_depth, size.text_layers, 3))
    return {"deepstack_visual_indexes": list(levels), "num_position_embeddings": 256}


def _rope(size: Sizes, sections: tuple[int, int, int]) -> dict[str, Any]:
    """The originals' division of rotary pairs among time, height and width, scaled to the head's width."""
    scale = size.text_width // size.text_heads // 32
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [scale * pairs for pairs in sections]}


_QWEN3: dict[str, Any] = {
    "processor": "Qwen3VLProcessor",
    "video_processor": "Qwen3VLVideoProcessor",
    "patch": 16,
    "default_system": "",
    "image_area": (64 * 64, 512 * 512),
    "video_area": (64 * 64, 32 * 256 * 256),
    "vision": _vision_qwen3,
}
_QWEN3_5 = _QWEN3 | {"vision": lambda _: {"num_position_embeddings": 256}, "thinks": True}
FAMILIES: dict[str, Family | Other] = {
    "qwen2_5_vl": Family(
        name="Qwen2_5_VL",
        processor="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
        patch=14,
        default_system="You are a helpful assistant.",
        image_area=(56 * 56, 448 * 448),
        video_area=(56 * 56, 448 * 448),
        text=_text_qwen2_5,
        vision=_vision_qwen2_5,
    ),
    "qwen3_vl": Family(name="Qwen3VL", text=_text_qwen3, **_QWEN3),
    "qwen3_vl_moe": Family(name="Qwen3VLMoe", text=_text_qwen3_moe, **_QWEN3),
    "qwen3_5": Family(name="Qwen3_5", text=_text_qwen3_5, **_QWEN3_5),
    "qwen3_5_moe": Family(name="Qwen3_5Moe", text=_text_qwen3_5_moe, **_QWEN3_5),
    "nemotron_h_omni": Other(made=nemotron, patch=16),
}


def main(options: Options) -> None:
    out = make(options.family, options.out, options.seed, **asdict(options.sizes))
    weights = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{out}: {options.family}, {weights / 4e6:.1f} M parameters")


if __name__ == "__main__":
    cli.run(main, Options)
