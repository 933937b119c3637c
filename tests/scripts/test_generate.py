from __future__ import annotations

import json
import shutil

import pytest

from data.types import MediaError, RowError
from evs.policy import Policy
from scripts import generate
from scripts.make_tiny_model import make
from tests.data import videos

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def model(request, tmp_path_factory) -> str:
    return str(make(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("videos")
    return str(videos.write(folder / "a.mp4", [i / 25 for i in range(100)], size=(112, 168)))


def ask(capsys, **options) -> dict:
    generate.main(generate.Options(json=True, max_new_tokens=4, logprobs=3, device="cpu", **options))
    return json.loads(capsys.readouterr().out)


def test_frames_and_pixels_are_those_of_the_training_unless_given(model, video, capsys, tmp_path) -> None:
    plain = ask(capsys, model=model, prompt="What?", video=video)
    folder = str(shutil.copytree(model, tmp_path / "exported"))
    Policy(fps=4.0, max_pixels=56 * 56).write(folder)
    trained = ask(capsys, model=folder, prompt="What?", video=video)
    given = ask(capsys, model=model, prompt="What?", video=video, fps=4.0, max_pixels=56 * 56)
    assert trained["prompt_ids"] == given["prompt_ids"] != plain["prompt_ids"]


def test_a_checkpoint_without_a_policy_is_named_in_one_line(model, video, capsys) -> None:
    generate.main(generate.Options(model, "What?", video=video, max_new_tokens=1, device="cpu"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "evs.json" in line]
    assert line.startswith(model) and "defaults" in line


def test_json_tells_what_was_asked_kept_and_answered(model, video, capsys) -> None:
    got = ask(capsys, model=model, prompt="What happens?", video=[video, video], rate=0.5)
    pruned = got["prompt_tokens"] - got["kept_tokens"]
    assert len(got["prompt_ids"]) == got["prompt_tokens"]
    assert len(got["kept_per_frame"]) == 2 and len(set(map(tuple, got["kept_per_frame"]))) == 1
    assert sum(map(sum, got["kept_per_frame"])) == pruned > 0
    assert len(got["output_ids"]) == len(got["logprobs"]) <= 4
    assert all(max(top, key=top.get) == str(id) for id, top in zip(got["output_ids"], got["logprobs"]))


def test_marks_say_where_the_media_stand(model, video, capsys) -> None:
    before = ask(capsys, model=model, prompt="What happens?", video=video)
    marked = ask(capsys, model=model, prompt="<video>What happens?", video=video)
    behind = ask(capsys, model=model, prompt="What happens?<video>", video=video)
    assert marked["prompt_ids"] == before["prompt_ids"]
    assert behind["prompt_ids"] != before["prompt_ids"]
    assert sorted(behind["prompt_ids"]) == sorted(before["prompt_ids"])


def test_sampling_is_a_function_of_the_seed(model, video, capsys) -> None:
    wild = {"model": model, "prompt": "What?", "video": video, "sample": True, "temperature": 5.0, "top_k": 100}
    first, again, other = (ask(capsys, seed=seed, **wild)["output_ids"] for seed in (1, 1, 2))
    assert first == again != other


def test_what_cannot_be_answered_is_refused_in_one_line(model, video, tmp_path) -> None:
    one = str(videos.write(tmp_path / "one.mp4", [0.0], size=(112, 168)))
    for options, error, message in [
        ({"rate": 1.0}, ValueError, r"rate 1.0 is outside \[0, 1\)"),
        ({"video": one}, MediaError, "1 frame.* do not fill a temporal grid"),
        ({"prompt": "<video> or <video>?"}, RowError, "<video> mark number 2 has no video"),
        ({"scheme": "vlm"}, ValueError, "scheme 'vlm' is unknown"),
    ]:
        with pytest.raises(error, match=message) as raised:
            generate.main(generate.Options(**{"model": model, "prompt": "What?", "video": video, **options}))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("option", ["temperature=0.5", "top_k=5", "top_p=0.9", "seed=1"])
def test_an_option_of_sampling_needs_sampling(option) -> None:
    key, value = option.split("=")
    greedy = generate.Options("model", "What?", **{key: float(value) if "." in value else int(value)})
    with pytest.raises(ValueError, match=f"{option} has no effect on greedy decoding: add sample=true"):
        generate.main(greedy)
