"""How vLLM serves each architecture: its video loader, and the methods that it prunes by with the plugin."""

from __future__ import annotations

NEMOTRON = "NemotronH_Omni_Reasoning_V3"
QWEN2_5 = "Qwen2_5_VLForConditionalGeneration"
QWEN3 = ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")
GLM = ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration")
QWEN3_5 = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
# Options of vLLM's video loaders: name, the field of Policy that gives its value, the server's default.
LOADER = (
    ("fps", "fps", 2.0),
    ("min_frames", "min_frames", 4),
    ("max_frames", "max_frames", 768),
    ("num_frames", None, 32),  # read for lists of frames only, which vLLM cuts to so many; files are sampled by fps
)
EVEN_LOADER = (("fps", "fps", -1), ("num_frames", "max_frames", 32))
GLM_LOADER = (("fps", "fps", 2), ("max_duration", "max_duration", 300), ("num_frames", None, 32))
LOADERS = {NEMOTRON: EVEN_LOADER, **dict.fromkeys(GLM, GLM_LOADER)}  # by architecture; Qwen's have LOADER
ALL_FRAMES = -1
# (method, prune_at) -> vLLM's --video-pruning-method and the architectures that it serves so. GLM is not among them:
# vLLM's class prunes by no method, and would ignore --video-pruning-rate, so such checkpoints are served unpruned.
SERVED: dict[tuple[str, str | int], tuple[str, tuple[str, ...]]] = {
    ("evs", "merger"): ("evs", (QWEN2_5, *QWEN3, *QWEN3_5, NEMOTRON)),
    ("vidcom2", "merger"): ("vidcom2", (*QWEN3, *QWEN3_5)),
    ("pixel_delta", "input"): ("evs", (QWEN2_5, *QWEN3)),
}

WITHOUT_PLUGIN = {NEMOTRON: "Without the plugin, vLLM does not find the width of the vision tower and does not start."}
VLLM_VERSIONS = ("0.31.0", "0.32.0", "0.33.0")  # that the plugin accepts
RECOMMENDED_VLLM = "0.32.0"  # everything in docs/serving.md is tested with it
FIRST_VERSION = {NEMOTRON: 1}  # index in VLLM_VERSIONS of the first version that has the architecture
