"""Write the graded suite: video files with questions, whose kind says how pruning affects their answer.

    python scripts/make_suite.py out=DIR split=train videos=4000 [seed=0]
    python scripts/make_suite.py out=DIR split=held_out videos=500 backgrounds=[texture,bikes] cameras=[fixed,moving] \\
        qualities=[clean,normal,rough] grids=[8,16,32,64]

Writes DIR/data.jsonl. A training row has all questions of a video; a held-out row has one, its kind and conditions.
With stills=N, DIR/stills.jsonl asks N questions about images and N about text, whose accuracy uptraining must not cost.
The two splits share no scene, no seed and no part of a clip.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.synthetic.items import KINDS, PRUNED
from data.synthetic.stills import write_stills
from data.synthetic.suite import CAMERAS, QUALITY, SPLITS, Suite, generate
from train import cli
from train.ranges import names, number


@dataclass
class Options:
    out: str  # a new folder
    split: str = names("train", *SPLITS)  # train or held_out, which share no scene
    videos: int = number(1000, least=1)  # number of videos
    seed: int = number(0, least=0, below=2**32)  # of the scenes
    kinds: list[str] = names(list(KINDS), *KINDS)  # of questions
    items: int = number(4, least=1)  # questions per video, each of another kind
    backgrounds: list[str] = field(default_factory=lambda: ["texture"])  # texture, or clips of installed packages
    cameras: list[str] = names(["fixed"], *CAMERAS)  # fixed or moving
    qualities: list[str] = names(["normal"], *QUALITY)  # levels of noise and compression
    grids: list[int] = number([16], least=1, fewest=1, unique=True)  # temporal grids, of two frames each
    stills: int = number(0, least=0)  # further questions about an image, and as many about text alone: stills.jsonl
    lettered: bool = False  # ask for the letter of one of four options
    workers: int = number(2, least=1)  # processes


def main(options: Options) -> None:
    out = Path(options.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out} is not empty: remove it, or give another folder")
    suite = Suite(
        split=options.split,
        seed=options.seed,
        items=options.items,
        lettered=options.lettered,
        **{name: tuple(getattr(options, name)) for name in ("kinds", "backgrounds", "cameras", "qualities", "grids")},
    )
    data = generate(out, options.videos, suite, workers=options.workers)
    if options.stills:
        write_stills(out, options.stills, options.split, options.seed)
    for kind in options.kinds:
        print(f"{kind:10} {PRUNED[kind]}")
    print(f"{options.videos * options.items} questions on {options.videos} videos: {data}")
    if options.stills:
        print(f"{2 * options.stills} questions on images and text: {out / 'stills.jsonl'}")


if __name__ == "__main__":
    cli.run(main, Options)
