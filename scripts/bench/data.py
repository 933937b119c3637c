"""Planning 1,000 steps by budget, and decoding a few frames of a long video."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from transformers.video_utils import load_video

from data.batching.plans import TERA, Budget, BudgetPlan
from data.batching.sample_cost import SampleCost
from data.media.container import VideoInfo
from data.media.decode import decode as decode_sparse
from data.sizes import Rates, SampleSize, Sizes, gather
from data.types import VideoRef
from evs import FrameDelta, Uniform
from scripts.bench.models import build_shape, model_config
from scripts.bench.timing import alternate, table
from train.cost import operations as cost
from train.cost.plans import kept_counts
from train.views import StepRates

KEPT = partial(kept_counts, FrameDelta())
STEPS, WORLDS, TOKENS = 1000, (8, 64), 16_384
KEYFRAMES = (2, 5, 10)  # seconds; 10 is x264's default at 25 frames a second


def mixture(samples: int = 50_000, seed: int = 0) -> Sizes:
    """Samples of 40 to 400 text tokens: clips of 4 to 128 frames in five frame sizes, pictures and plain text, 3 : 1 :
    1."""
    random = np.random.default_rng(seed)
    kinds = random.choice(3, samples, p=[0.6, 0.2, 0.2])
    return gather(_row(int(kind), random) for kind in kinds)


def _row(kind: int, random: np.random.Generator) -> SampleSize:
    text = int(random.integers(40, 400))
    if kind == 0:
        grids, tokens = int(random.integers(2, 65)), int(random.choice([48, 64, 96, 128, 192]))
        return SampleSize(text, ((grids, tokens),), 4 * grids * tokens, 2 * grids, text // 2, grids * (4 * tokens) ** 2)
    image = int(random.integers(64, 1500)) if kind == 1 else 0
    return SampleSize(text + image, (), 4 * image, 0, text // 2, (4 * image) ** 2)


def batching(rounds: int) -> dict[str, Any]:
    """Used share of the budget, spread of cost over ranks, and milliseconds of planning per step, at rates from [0,
    .9].

    Micro-batches are planned for equal cost of a Qwen2.5-VL-7B with a frozen tower, then for equal numbers of tokens.
    """
    sizes, config = mixture(), model_config(build_shape("qwen2_5_vl_7b"))
    price = cost.sample_cost(config, sizes, frozen=("vision",), recomputed=("vision", "language"))
    allowed = cost.budget(price, sizes.in_views(np.arange(len(sizes)), (0.0,), KEPT), TOKENS)
    results = {
        f"{name}, {world} ranks": _planned(
            BudgetPlan(sizes, budget, _rates(world), KEPT, world, 0, 0, cost_of=of), price
        )
        for world in WORLDS
        for name, budget, of in (("cost", Budget(TOKENS, cost=allowed), price), ("tokens", Budget(TOKENS), None))
    }
    header = ("budget", "fill", "spread of cost: mean", "worst", "ms per step")
    rows = [(name, *(f"{value:.4f}" for value in result.values())) for name, result in results.items()]
    print(f"{STEPS} steps, {TOKENS} tokens, {allowed / TERA:.0f} TFLOP\n{table(header, rows)}")
    return results


def _rates(world: int) -> Callable[[int], Sequence[Rates]]:
    drawn = StepRates(Uniform(0.0, 0.9), world, 0, levels=64)
    return [drawn(step) for step in range(STEPS)].__getitem__


def _planned(plan: BudgetPlan, price: SampleCost) -> dict[str, float]:
    begin = time.process_time()
    for number in range(STEPS):
        plan.micro_batches(number)
    seconds = time.process_time() - begin
    global_plan, world = replace(plan, world=1), plan.world
    costs, fills = np.empty((2, STEPS, world))
    for number in range(STEPS):
        for rank, (batch, rates) in enumerate(zip(global_plan.micro_batches(number), plan.rates(number))):
            samples = np.array(batch)
            tokens = plan.sizes.in_views(samples, rates, KEPT)
            costs[number, rank] = price(samples, tokens).sum()
            fills[number, rank] = tokens.sum() / plan.budget.tokens
    between = np.ptp(costs, axis=1) / costs.mean(1)
    return {
        "fill": float((costs / plan.budget.cost if plan.budget.cost else fills).mean()),
        "ranks_mean": float(between.mean()),
        "ranks_worst": float(between.max()),
        "ms_a_step": 1000 * seconds / STEPS,
    }


def decode(rounds: int) -> dict[str, Any]:
    """Seconds to decode 16 frames of a video of ten minutes, by keyframe interval: ours, decoding every frame, and the
    loader of transformers."""
    results: dict[str, Any] = {}
    rows = []
    load: Any = load_video  # its annotations do not allow paths
    for seconds in KEYFRAMES:
        with TemporaryDirectory() as folder:
            path = str(_long_video(Path(folder) / "long.mp4", keyframes=seconds))
            times = alternate(
                {
                    "ours": partial(decode_sparse, VideoRef(path), _sixteen),
                    "every frame": partial(_decode_all, path),
                    "transformers": partial(load, path, num_frames=16, backend="pyav"),
                },
                rounds,
            )
        ratio_to = times["ours"].ratio_to
        rows.append(
            (
                seconds,
                *(f"{timed.median:.3f}" for timed in times.values()),
                *("{:.1f} ({:.1f}..{:.1f})".format(*ratio_to(times[name])) for name in ("every frame", "transformers")),
            )
        )
        results[f"keyframe every {seconds} s"] = {
            n: {"seconds": t.median, "rounds": t.seconds} for n, t in times.items()
        }
    header = ("keyframe every, s", "ours", "every frame", "transformers", "every frame / ours", "transformers / ours")
    print("16 frames of a 10-minute video, seconds\n" + table(header, rows))
    return results


def _sixteen(info: VideoInfo) -> np.ndarray:
    return np.linspace(0, info.frames - 1, 16).round().astype(np.int64)


def _decode_all(path: str) -> None:
    with av.open(path) as container:
        for _ in container.decode(video=0):
            pass


def _long_video(path: Path, *, keyframes: float, seconds: int = 600, fps: int = 25) -> Path:
    """Moving blocks at 480 x 270, as x264 encodes them by default: three B-frames between the others."""
    still = np.random.default_rng(0).integers(0, 255, (18, 32, 3), dtype=np.uint8)
    picture = np.kron(still, np.ones((15, 15, 1), np.uint8))
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "g": str(round(keyframes * fps)), "bf": "3", "sc_threshold": "0"}
        stream: Any = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 480, 270, "yuv420p"
        for number in range(seconds * fps):
            moved = np.ascontiguousarray(np.roll(picture, 3 * number, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())
    return path
