"""The model card of an exported checkpoint, from what the run recorded."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from train.config import Config
from train.report.curve import Curve, table
from train.served import policy_of, serve_command

CARD = Template("""\
---
base_model: $base
library_name: transformers
pipeline_tag: video-text-to-text
tags: [video, token-pruning, efficient-video-sampling]
---

# $name

Base model: $base, uptrained to stay accurate when Efficient Video Sampling
([arXiv 2510.14624](https://arxiv.org/abs/2510.14624)) prunes its video tokens. A stock checkpoint: the base model's
keys, configuration and processor, its frame sizes those of the training.

    $serve

`evs.json` holds the frames, pixels, rates and scores of the training; frame rate and limits are the command's, since
servers read them from no file.

## Training

$checkpoint of $steps steps; rates drawn from `$rate`, pruned by `$method`; frozen: $frozen; learning rate $lr.

## Accuracy by pruning rate, held-out data (%)

$curve
""")


def model_card(config: Config, checkpoint: str, curves: Sequence[Curve]) -> str:
    """Markdown with the Hub's front matter; refers to `curve.png` beside it when there are curves."""
    return CARD.substitute(
        base=config.model.path,
        name=config.tracker.name or config.run_dir.rstrip("/").rsplit("/", 1)[-1],
        checkpoint=checkpoint,
        steps=config.train.steps,
        rate=_call(config.rate),
        method=_call(config.method),
        frozen=", ".join(config.model.freeze) or "nothing",
        lr=config.optim.lr,
        serve=serve_command(policy_of(config)),
        curve=f"![accuracy by rate](curve.png)\n\n{table(curves)}" if curves else "Not evaluated during the run.",
    )


def _call(node: dict) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in node.items() if key != "_target_")
    return f"{node['_target_'].rsplit('.', 1)[-1]}({arguments})"
