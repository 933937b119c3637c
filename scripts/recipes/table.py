"""The recipes that the study compares, as command-line arguments of train/run.py."""

from __future__ import annotations

from dataclasses import dataclass

CONTROL = "control"
REFERENCE = "uniform"  # every recipe gets as many operations
PAPER = "beta"  # the rate distribution of the paper
SHARE = 0.1  # of samples that are questions about images or text
FROZEN = "model.freeze=[vision]"  # as in the real experiments
BASE = "base"  # trained without pruning; all recipes start from it
# A random tower sees change in every seed (the page states the area), which training a tiny one would undo.
BASE_WORDS = ("rate=constant", FROZEN, "optim.lr=3e-3", "train.batch_size=16")
BASE_SHARE = 0.35  # images and text have one question, videos one of every kind
COMPARED = (CONTROL, REFERENCE)  # also evaluated unpruned on fewer and on smaller frames
BY_PIXELS = "method=pixel_delta"
SERVED = {  # methods and places under which models are evaluated, as arguments of scripts/evaluate.py
    "evs": ("method=evs", "prune_at=merger"),
    "vidcom2": ("method=vidcom2", "prune_at=merger"),
    "pixels": (BY_PIXELS, "prune_at=merger"),
    "input": (BY_PIXELS, "prune_at=input"),
}
TRANSFER_RATES = (0.75, 0.85)


@dataclass(frozen=True)
class Recipe:
    """A recipe of uptraining."""

    name: str
    about: str
    words: tuple[str, ...]
    equal_steps: bool = False  # as many steps as the reference, whatever they cost
    budget: float = 1.0  # operations, as a fraction of the reference's
    stills: float = SHARE  # share of samples that are questions about images or text
    served: str | None = None  # of SERVED: method of the evaluation, if it is another
    native: str | None = None  # of SERVED: its own method; it is evaluated under the others as well
    reduced: str | None = None  # of data.encoding.reduction: trained and served unpruned on reduced videos

    def arguments(self, steps: int) -> list[str]:
        """The arguments of a run of this many steps."""
        return [f"train.steps={steps}", FROZEN, *self.words]


RECIPES = (
    Recipe(CONTROL, "rate 0, for as many steps as uniform", ("rate=constant",), equal_steps=True, native="evs"),
    Recipe("fixed", "always .75", ("rate=constant", "rate.rate=0.75")),
    Recipe("uniform", "U(0, .9)", ("rate=uniform",), native="evs"),
    Recipe("half", "as uniform, with half the operations", ("rate=uniform",), budget=0.5),
    Recipe("beta", "the paper's kind: Beta around .75", ("rate=beta",)),
    Recipe("mixture", "a quarter unpruned, else U(0, .9)", ("rate=mixture",)),
    Recipe("per_video", "U(0, .9), each video of a batch its own", ("train.rate_per_video=true",)),
    Recipe("views", "two views of each video, of a half of U(0, .9) each", ("train.views=2",)),
    Recipe(
        "distill",
        "two views of each video: unpruned, and U(0, .9), which the first teaches",
        ("train.views=2", "train.anchor_rate=0", "train.distill.weight=1"),
    ),
    Recipe("vidcom2", "U(0, .9) by VidCom2", ("method=vidcom2", "method.dtype=null"), native="vidcom2"),
    Recipe("pixels", "U(0, .9) by pixels, after the tower", (BY_PIXELS,), native="pixels"),
    Recipe("input", "U(0, .9) by pixels, before the tower", (BY_PIXELS, "method.prune_at=input"), native="input"),
    Recipe("drawn", "U(0, .9), by features or before the tower, drawn every step", ("method=drawn",), native="evs"),
    Recipe(
        "dirichlet", "U(0, .9), spread over frames at random, served by EVS", ("method=dirichlet_frames",), served="evs"
    ),
    Recipe("fewer_frames", "unpruned, fewer frames: 1 - U(0, .9) of the tokens", ("rate=constant",), reduced="frames"),
    Recipe(
        "smaller_frames", "unpruned, smaller frames: 1 - U(0, .9) of the tokens", ("rate=constant",), reduced="pixels"
    ),
    Recipe("stills_0", "as uniform, without images and text", ("rate=uniform",), stills=0.0),
    Recipe("stills_25", "as uniform, with 25 % images and text", ("rate=uniform",), stills=0.25),
)


def named(names: list[str]) -> tuple[Recipe, ...]:
    """The recipes of these names, or all if `names` is empty. ValueError if one is unknown."""
    by_name = {recipe.name: recipe for recipe in RECIPES}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"recipes={unknown[0]} is unknown: use {', '.join(by_name)}")
    return tuple(by_name[name] for name in names or by_name)
