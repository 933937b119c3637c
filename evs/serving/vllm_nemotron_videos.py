"""vLLM's Nemotron Omni with videos of several sizes in a prompt, whose frames stock vLLM joins into one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.models.nano_nemotron_vl import (
    NanoNemotronVLDummyInputsBuilder,
    NanoNemotronVLMultiModalProcessor,
    NanoNemotronVLProcessingInfo,
    NemotronH_Nano_VL_V2,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig

FRAMES = "pixel_values_flat_video"


class EachVideoAlone(NanoNemotronVLMultiModalProcessor):
    """Calls the processor for one video at a time. The encoder too takes one at a time."""

    def _get_video_fields_config(self, hf_inputs: Any) -> dict[str, MultiModalFieldConfig]:
        return {**super()._get_video_fields_config(hf_inputs), FRAMES: MultiModalFieldConfig.batched("video")}

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> Any:
        videos = hf_data.get("videos") or []
        if not videos:
            return super()._call_hf_processor(hf_data, hf_kwargs)
        others = {name: value for name, value in hf_data.items() if name != "videos"}
        text = self._get_hf_mm_text({"video": 1})
        call = super()._call_hf_processor
        outputs = [call({"text": text, "videos": [video]}, hf_kwargs) for video in videos]
        data = call(others, hf_kwargs)
        data[FRAMES] = [one[FRAMES] for one in outputs]
        data["frames_indices"] = [torch.as_tensor(one["frames_indices"][0]) for one in outputs]
        for name in ("video_num_patches", "frame_duration_ms"):
            data[name] = torch.cat([one[name] for one in outputs])
        return data


@MULTIMODAL_REGISTRY.register_processor(
    EachVideoAlone, info=NanoNemotronVLProcessingInfo, dummy_inputs=NanoNemotronVLDummyInputsBuilder
)
class NemotronOmniVideos(NemotronH_Nano_VL_V2): ...
