"""What an export says to servers: the command, and the policy that travels with the weights."""

from __future__ import annotations

import shutil

import pytest

from evs.families.servers import NEMOTRON, QWEN2_5, QWEN3
from evs.policy import FILE, Policy, load_policy, loader_options, served_method
from tests.hub import hub
from train.export.serving_metadata import not_pruned, serve_command

RESOLVE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.mark.parametrize(
    ("policy", "architecture", "method"),
    [
        (Policy(), QWEN2_5, "evs"),
        (Policy(), NEMOTRON, "evs"),
        (Policy(method="vidcom2"), QWEN3[0], "vidcom2"),
        (Policy(method="vidcom2"), QWEN2_5, None),
        (Policy(method="pixel_delta"), QWEN2_5, None),
        (Policy(method="pixel_delta", prune_at="input"), QWEN2_5, "evs"),
        (Policy(method="pixel_delta", prune_at="input"), NEMOTRON, None),
        (Policy(method="pixel_delta", prune_at="input", scheme="vllm"), QWEN2_5, None),
        (Policy(method="pixel_delta", prune_at=2), QWEN2_5, None),
        (Policy(method="random_tokens"), QWEN3[0], None),
        (Policy(method="even_frames"), "", None),
    ],
)
def test_a_server_s_method_is_named_only_if_it_prunes_as_in_training(policy, architecture, method):
    assert served_method(policy, architecture) == method
    command = serve_command(policy, rate=0.5, architecture=architecture)
    assert ("--video-pruning-rate 0.5" in command) == bool(method)
    assert bool(not_pruned(policy, architecture)) == (method is None)
    assert "--video-pruning-method pixel_delta" not in command and "--video-pruning-method random" not in command


def test_the_command_serves_frame_lists_whole():
    assert loader_options(Policy(), QWEN2_5)["num_frames"] == -1
    assert loader_options(Policy(max_frames=16), NEMOTRON)["num_frames"] == 16
    assert '"num_frames": -1' in serve_command(Policy())


@pytest.mark.parametrize("files", [{"config.json"}, {"config.json", FILE}])
def test_marked_weights_on_the_hub_are_refused_without_their_policy(checkpoint, tmp_path, monkeypatch, files):
    folder = shutil.copytree(checkpoint("qwen2_5_vl"), tmp_path / "trained")
    policy = Policy(method="pixel_delta", prune_at="input")
    policy.write(folder)
    with hub(exists=True, files={name: (folder / name).read_bytes() for name in files}) as held:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", held.url + RESOLVE)
        if FILE in files:
            assert load_policy("user/name") == policy
        else:
            with pytest.raises(ValueError, match=r"evs\.json is missing, and the weights were trained"):
                load_policy("user/name")


def test_what_is_neither_a_folder_nor_on_the_hub_has_no_policy():
    assert load_policy("no/such/folder") is None
