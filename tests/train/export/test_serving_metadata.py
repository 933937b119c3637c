"""What an export says to servers: the command, and the policy that travels with the weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from evs.families.servers import NEMOTRON, QWEN2_5, QWEN3
from evs.policy import FILE, Policy, load_policy, loader_options, served_method
from tests.hub import hub
from train.export.serving_metadata import lora_flags, not_pruned, serve_command

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


@pytest.mark.parametrize(("scheme", "begin"), [("preserve", "vllm"), ("vllm", "EVS_VLLM_PLUGIN=0 vllm")])
def test_a_checkpoint_of_stock_positions_is_served_without_the_plugin(scheme, begin):
    assert serve_command(Policy(scheme=scheme), "model").startswith(f"{begin} serve model ")


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (4, 8), (8, 8), (9, 16), (512, 512)])
def test_an_adapter_is_served_at_the_lowest_rank_that_vllm_has_for_it(checkpoint, tmp_path, rank, served):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    save_file({"model.language_model.layers.0.lora_A": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert f"--max-lora-rank {served} " in f"{lora_flags(tmp_path, checkpoint('qwen2_5_vl'), Policy())} "


def test_an_adapter_above_vllm_s_ranks_is_refused(checkpoint, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 513}))
    save_file({"model.language_model.layers.0.lora_A": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="its rank 513 is above vLLM's 512: export the run without adapter=true"):
        lora_flags(tmp_path, checkpoint("qwen2_5_vl"), Policy())


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
