"""Planning by budget over 1,000 steps, and sparse frames out of a long video."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from transformers.video_utils import load_video

from data.batching import Budget, BudgetPlan
from data.media.container import VideoInfo
from data.media.decode import decode as decode_sparse
from data.sizes import SampleSize, Sizes, gather
from data.types import VideoRef
from evs import FrameDelta, Uniform
from scripts.bench.timing import alternate, table
from train.build import kept_counts
from train.loop import StepRates

KEPT = partial(kept_counts, FrameDelta())
STEPS, WORLD, TOKENS = 1000, 8, 16_384
KEYFRAMES = (2, 5, 10)  # seconds; 10 is x264's default at 25 frames a second


def mixture(samples: int = 50_000, seed: int = 0) -> Sizes:
    """Clips of 4 to 128 frames at five sizes of frame, 40 to 400 tokens of text."""
    random = np.random.default_rng(seed)
    grids = random.integers(2, 65, samples)
    tokens = random.choice([48, 64, 96, 128, 192], samples)
    text = random.integers(40, 400, samples)
    return gather(
        SampleSize(int(n), ((int(t), int(k)),), int(4 * t * k), int(2 * t), int(n) // 2, int(t * (4 * k) ** 2))
        for t, k, n in zip(grids, tokens, text)
    )


def batching(rounds: int) -> dict[str, Any]:
    """Fill, spread and equality over ranks of planned micro-batches at rates drawn from [0, .9], and planning time.

    With the patch budget out of the way, then with one that holds above a rate of about .75.
    """
    results = {}
    for name, patches in (("tokens", None), ("tokens and patches", 16 * TOKENS)):
        results[name] = _planned(Budget(TOKENS, patches))
    header = ("budget", "fill", "fill of the tighter", "cv of tokens", "ranks: mean", "worst", "ms a step")
    rows = [(name, *(f"{value:.4f}" for value in each.values())) for name, each in results.items()]
    print(f"{STEPS} steps, {WORLD} ranks, {TOKENS} tokens\n{table(header, rows)}")
    return results


def _planned(budget: Budget) -> dict[str, float]:
    sizes, rates = mixture(), StepRates(Uniform(0.0, 0.9), WORLD, 0)
    plans = [BudgetPlan(sizes, budget, rates, KEPT, WORLD, rank, 0) for rank in range(WORLD)]
    begin = time.perf_counter()
    for number in range(STEPS):
        plans[0].micro_batches(number)
    seconds = time.perf_counter() - begin
    tokens, patches = (np.empty((STEPS, WORLD)) for _ in range(2))
    for number in range(STEPS):
        for rank, plan in enumerate(plans):
            places = np.array(plan.micro_batches(number)[0])
            tokens[number, rank] = sizes.tokens(places, rates(number)[rank], KEPT).sum()
            patches[number, rank] = sizes.patches_S[places].sum()
    tighter = np.maximum(tokens / budget.tokens, patches / budget.patches) if budget.patches else tokens / budget.tokens
    between = np.ptp(tokens, axis=1) / tokens.mean(1)
    return {
        "fill": tokens.mean() / budget.tokens,
        "fill_of_the_tighter": tighter.mean(),
        "cv": tokens.std() / tokens.mean(),
        "ranks_mean": between.mean(),
        "ranks_worst": between.max(),
        "ms_a_step": 1000 * seconds / STEPS,
    }


def decode(rounds: int) -> dict[str, Any]:
    """16 frames out of ten minutes: ours, every frame decoded, and the library's loader, by keyframe interval."""
    results: dict[str, Any] = {}
    rows = []
    load: Any = load_video  # its annotations leave out paths
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
                *(f"{each.median:.3f}" for each in times.values()),
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
