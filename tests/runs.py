"""Configurations as the command line composes them, and runs of them in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
from hydra import compose, initialize_config_module

from train.checkpoint.checkpoint import complete, step_of
from train.checks import check
from train.cli import launcher
from train.config import Config
from train.run import main, register, typed

ROOT = Path(__file__).parents[1]
SMALL_HEIGHT = 144


def shrink(source: Path, path: Path) -> Path:
    """A video of the same frames at the same times, at most SMALL_HEIGHT pixels high."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as small:
        video = whole.streams.video[0]
        stream = small.add_stream("libx264", rate=video.average_rate, options={"crf": "18", "preset": "veryfast"})
        stream.height = SMALL_HEIGHT
        stream.width = round(video.width * SMALL_HEIGHT / video.height / 2) * 2
        stream.pix_fmt = "yuv420p"
        for frame in whole.decode(video):
            small.mux(stream.encode(frame.reformat(stream.width, stream.height)))
        small.mux(stream.encode())
    return path


def write_questions(path: Path, clips: list[Path]) -> Path:
    """A data file of two conversations about each clip, with multiple-choice and free answers."""
    rows: list[dict[str, Any]] = []
    for i, clip in enumerate(clips * 2):
        letter = "ABCD"[i % len(clips)]
        options = "\n".join(f"{name}. {other.stem}" for name, other in zip("ABCD", clips))
        turns = [("human", f"<video>\nWhich video is it?\n{options}"), ("gpt", letter)]
        turns += [("human", "How many seconds?"), ("gpt", "five")]
        rows.append({"id": f"row{i}", "video": str(clip), "conversations": [{"from": a, "value": b} for a, b in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_words(
    model: Path, questions: Path, run_dir: Path, *more: str, experiment: str = "qwen_evs_uptrain"
) -> list[str]:
    """The words of a run of four steps without an engine, in fp32. Further words win."""
    return [
        *[f"+experiment={experiment}", f"model.path={model}", f"data.train={questions}", f"run_dir={run_dir}"],
        *["engine=none", "engine.precision=fp32", "train.steps=4", "train.accumulation=2", "train.log_every=1"],
        *["optim.lr=1e-3", "data.max_frames=8", "data.max_pixels=25088", "data.workers=0", "tracker.wandb=false"],
        *more,
    ]


def composed(*words: str) -> Config:
    register()
    with initialize_config_module("configs", version_base="1.3"):
        return typed(compose("config", overrides=list(words)))


def trained(*words: str) -> Config:
    """The run that `python train/run.py WORDS` would be, in this process."""
    from train.build import build_run
    from train.loop import fit

    config = composed(*words)
    check(config)
    if (run := build_run(config)) is not None:
        fit(run)
    return config


def cut_off(whole: Path, broken: Path, step: int) -> None:
    """A copy of a run as if it had been killed when the checkpoint of `step` was complete."""
    shutil.copytree(whole, broken)
    for checkpoint in complete(broken / "checkpoints"):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)


def printed(capsys: Any, *words: str) -> tuple[int, str]:
    """(exit status, everything printed) of `python train/run.py WORDS`, in this process."""
    status, arguments = 0, sys.argv
    sys.argv = ["train/run.py", *words]
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    finally:
        sys.argv = arguments
    return status, "".join(capsys.readouterr())


def started(*words: str, ranks: int = 1) -> subprocess.Popen[str]:
    """`python train/run.py WORDS` in processes of its own, under torchrun where there are several ranks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher(ranks), str(ROOT / "train" / "run.py"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    """(exit status, everything it printed)."""
    printed, _ = process.communicate(timeout=timeout)
    return process.returncode, printed


def rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """A run's lines so far; the one being written is left out."""
    path = run_dir / name
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def reached(process: subprocess.Popen[str], run_dir: Path, step: int, timeout: float = 120) -> None:
    """Waits until the run has reported `step`."""
    until = time.monotonic() + timeout
    while not any(row["step"] >= step for row in rows(run_dir)):
        assert process.poll() is None, ended(process)[1][-3000:]
        assert time.monotonic() < until, f"step {step} was not reported within {timeout} s"
        time.sleep(0.05)
