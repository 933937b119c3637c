"""The recipes that the study compares, as command-line arguments of train/run.py."""

from __future__ import annotations

from dataclasses import dataclass

CONTROL = "control"
REFERENCE = "uniform"  # every recipe gets as many operations
PAPER = "beta"  # the rate distribution of the paper
FROZEN = ("model.freeze=[vision]",)  # as in the real experiments
BY_PIXELS = "method=pixel_delta"


@dataclass(frozen=True)
class Recipe:
    """A recipe of uptraining. In `words`, {steps} stands for the number of steps that its operations allow."""

    name: str
    about: str
    words: tuple[str, ...]
    equal_steps: bool = False  # as many steps as the reference, whatever they cost
    export: tuple[str, ...] = ()  # arguments of scripts/export.py
    block: int = 0  # block of the vision tower before which tokens are dropped; 0: before or after the whole tower

    def arguments(self, steps: int) -> list[str]:
        """The arguments of a run of this many steps."""
        return [f"train.steps={steps}", *FROZEN, *(word.replace("{steps}", str(steps)) for word in self.words)]


BASE = "base"  # trained without pruning; all recipes start from it
RECIPES = (
    Recipe(CONTROL, "rate 0, for as many steps as uniform", ("rate=constant",), equal_steps=True),
    Recipe("fixed", "always .75", ("rate=constant", "rate.rate=0.75")),
    Recipe("uniform", "U(0, .9)", ("rate=uniform",)),
    Recipe("beta", "the paper's kind: Beta around .75", ("rate=beta",)),
    Recipe("mixture", "a quarter unpruned, else U(0, .9)", ("rate=mixture",)),
    Recipe("curriculum", "from U(0, .3) to U(0, .9)", ("rate=curriculum", "rate.steps=[0,{steps}]")),
    Recipe("frame_beta", "a Beta over all but one grid of each video", ("rate=frame_beta",)),
    Recipe("per_video", "U(0, .9), each video of a batch its own", ("train.rate_per_video=true",)),
    Recipe("views", "two views of each video, of a half of U(0, .9) each", ("train.views=2",)),
    Recipe("anchor", "two views of each video: unpruned, and U(0, .9)", ("train.views=2", "train.anchor_rate=0")),
    Recipe(
        "distill",
        "as anchor, the unpruned view teaches the other",
        ("train.views=2", "train.anchor_rate=0", "train.distill.weight=1"),
    ),
    Recipe("ema", "U(0, .9), the average of the weights", ("train.ema=0.95",), export=("ema=true",)),
    Recipe("pixels", "U(0, .9) by pixels, after the tower", (BY_PIXELS,)),
    Recipe("input", "U(0, .9) by pixels, before the tower", (BY_PIXELS, "method.prune_at=input")),
    Recipe(
        "input_per_video",
        "as input, each video of a batch its own rate",
        (BY_PIXELS, "method.prune_at=input", "train.rate_per_video=true"),
    ),
    *(
        Recipe(
            f"block{block}",
            f"U(0, .9) by pixels, before block {block} of the tower",
            (BY_PIXELS, f"method.prune_at={block}"),
            block=block,
        )
        for block in (1, 2, 3)
    ),
)


def named(names: list[str], blocks: int) -> tuple[Recipe, ...]:
    """The recipes of these names; if `names` is empty, all recipes that a tower of this many blocks allows.

    ValueError if a recipe is unknown or needs a deeper tower.
    """
    by_name = {recipe.name: recipe for recipe in RECIPES}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"recipes={unknown[0]} is unknown: use {', '.join(by_name)}")
    if late := [name for name in names if by_name[name].block >= blocks]:
        raise ValueError(
            f"recipes={late[0]}: the tower has no such block: give blocks={by_name[late[0]].block + 1} or more"
        )
    return tuple(by_name[name] for name in names or by_name if by_name[name].block < blocks)
