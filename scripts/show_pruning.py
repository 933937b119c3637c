"""Show what pruning drops from a video: frames with dropped tokens in grey, and a chart of kept tokens per frame.

    python scripts/show_pruning.py video=FILE [model=DIR_OR_HUB_ID] [rates=[0.5,0.75,0.9]] [out=runs/pruning]

    python scripts/show_pruning.py video=FILE model=DIR_OR_HUB_ID score=true      does the score see change?

Writes one PNG per rate and a GIF of all rates. With a model, its vision tower scores the tokens, on the frames and
pixels of its evs.json. Without a model, pixel differences are used instead, as the title of every picture says.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.pruning.drawing import moving, still
from scripts.pruning.keep_masks import keep_by_features, keep_by_pixels
from scripts.pruning.score_areas import area_table
from train import cli
from train.ranges import number, pruning_rates


@dataclass
class Options:
    video: str  # video file
    model: str | None = None  # a checkpoint's folder or Hub id; null: use pixel differences
    rates: list[float] = pruning_rates([0.5, 0.75, 0.9])  # pruning rates to show
    out: str = "runs/pruning"  # folder for the pictures
    fps: float = number(2.0, above=0, most=30)  # without a model: sampled frames per second
    max_frames: int = number(64, least=2)  # without a model: largest number of sampled frames
    score: bool = False  # print how well the model's scores separate tokens whose pixels changed, instead of pictures


def main(options: Options) -> None:
    video, out = Path(options.video), Path(options.out)
    if not video.is_file():
        raise ValueError(f"video={video} does not exist: give a video file")
    if options.model is not None:
        cli.refuse_unused(options, ("fps", "max_frames"), "with a model, whose evs.json sets the frames: remove it")
    if options.score:
        if options.model is None:
            raise ValueError("score=true measures the scores of a model: give model=DIR_OR_HUB_ID")
        print(area_table(video, options.model))
        return
    if options.model is not None:
        pruned = keep_by_features(video, options.model, options.rates)
    else:
        pruned = keep_by_pixels(video, options.rates, options.fps, options.max_frames)
    out.mkdir(parents=True, exist_ok=True)
    for rate in options.rates:
        still(pruned, rate, picture := out / f"{video.stem}_rate_{rate:g}.png")
        print(f"picture: {picture}")
    moving(pruned, animation := out / f"{video.stem}.gif")
    print(f"animation: {animation}")


if __name__ == "__main__":
    cli.run(main, Options)
