"""The contract with servers: recorded counts, masks and positions, matched to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evs.methods.evs import FrameDelta
from evs.positions import Box, frame_boxes, image_box, rope_positions, stock_vllm, timed_box
from evs.selection import keep_count, select
from evs.types import Grid

DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16}
DTYPES |= {"fp16": torch.float16, "float16": torch.float16}


GOLDEN = Path(__file__).parents[1] / "golden" / "evs_golden.npz"  # layout: README.md beside it


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as z:
        arrays = dict(z)
    return arrays, json.loads(bytes(arrays["index_json"]).decode())


def features(array: np.ndarray, dtype: str) -> Tensor:
    """Half-width floats are recorded as their raw bits."""
    tensor = torch.from_numpy(array.copy())
    return tensor if array.dtype == np.float32 else tensor.view(torch.int16).view(DTYPES[dtype])


def merged(grid: list[int], merge: int) -> Grid:
    return Grid(grid[0], grid[1] // merge, grid[2] // merge)


def test_golden_counts(golden):
    z, _ = golden
    for tpf, t, q, n in zip(z["count_tpf"], z["count_T"], z["count_q"], z["count_n"]):
        assert keep_count(Grid(int(t), 1, int(tpf)), float(q)) == n, (tpf, t, q)


def test_golden_masks(golden):
    z, index = golden
    checked = 0
    for number, case in enumerate(index["mask_cases"]):
        key = case.get("key", f"m{number:03d}")
        if case["has_nan"]:
            continue
        grid = merged([case["T"], case["H"], case["W"]], case["merge"])
        scores = FrameDelta()(features(z[f"{key}_x"], case["dtype"]), grid)
        for i, q in enumerate(case["q"]):
            keep = select(scores, q).flatten().numpy()
            assert keep.sum() == z[f"{key}_count"][i]
            assert keep[: grid.tokens_per_frame].all()
            if case["exact"] or case["stable"][i]:
                np.testing.assert_array_equal(keep, z[f"{key}_mask"][i], err_msg=f"{key} rate {q}")
                checked += 1
    assert checked > 100


def qwen2_5_vl_prompt(case: dict[str, Any], served: bool = False) -> tuple[list[int], list[Box], list[tuple[str, int]]]:
    """Per token 0 = text, 1 = visual; the boxes; and (kind, tokens) of each segment with its markers."""
    visual: list[int] = []
    boxes: list[Box] = []
    segments: list[tuple[str, int]] = []
    for kind, *rest in case["segments"]:
        if kind == "text":
            visual += [0] * rest[0]
            segments.append(("text", rest[0]))
            continue
        media, grid_thw, seconds, dtype = rest
        seconds = int(seconds) if served and seconds is not None else seconds
        grid = merged(grid_thw, case["merge"])
        if kind == "video":
            box = timed_box(grid, tokens_per_second=case["tokens_per_second"], second_per_grid=seconds)
        else:
            box = image_box(grid)
        boxes.append(stock_vllm(box, "vllm_bf16" if dtype == "bfloat16" else "vllm") if served else box)
        visual += [0] + [1] * grid.tokens + [0]
        segments.append((f"{kind}{media}", grid.tokens))
    return visual, boxes, segments


def test_golden_qwen2_5_vl_positions(golden):
    z, index = golden
    for case in index["q25_cases"]:
        visual, boxes, segments = qwen2_5_vl_prompt(case)
        positions, following = rope_positions(torch.tensor(visual, dtype=torch.bool), boxes)
        survivors = positions[:, survive(z, case, segments)]
        np.testing.assert_array_equal(survivors, z[f"{case['key']}_pos_preserving"], err_msg=str(case))
        assert following == case["preserving_next_pos"]


def test_seconds_pass_through_float32_as_on_their_way_to_a_server():
    box = timed_box(Grid(6, 1, 1), tokens_per_second=2, second_per_grid=0.7)
    assert box.t_offsets == (0, 1, 2, 4, 5, 6)  # 5 x 2 x .7 is 7 in float64


def test_golden_qwen2_5_vl_served_positions(golden):
    z, index = golden
    served = [case for case in index["q25_cases"] if "error" not in case]
    for case in served:
        visual, boxes, segments = qwen2_5_vl_prompt(case, served=True)
        positions, _ = rope_positions(torch.tensor(visual, dtype=torch.bool), boxes)
        survivors = positions[:, survive(z, case, segments)]
        np.testing.assert_array_equal(survivors, z[f"{case['key']}_pos_served"], err_msg=str(case))
        assert survivors.max() + 1 - survivors.shape[1] == case["delta_v2"]
    assert len(served) > 10


def survive(z: dict[str, np.ndarray], case: dict[str, Any], segments: list[tuple[str, int]]) -> Tensor:
    """[N] bool, the recorded masks over the whole prompt."""
    keep: list[np.ndarray] = []
    for kind, tokens in segments:
        mask = z[f"{case['key']}_mask{kind[5:]}"].reshape(-1) if kind.startswith("video") else np.ones(tokens)
        keep.append(mask if kind == "text" else np.concatenate([[1], mask, [1]]))
    return torch.from_numpy(np.concatenate(keep).astype(bool))


def test_golden_qwen3_vl_positions(golden):
    z, index = golden
    stamp = index["meta"]["timestamp_tokens"]
    for case in index["q3_cases"]:
        grid = merged(case["grid"], 2)
        keep_THW = torch.from_numpy(z[f"{case['key']}_mask"].astype(bool)).view(grid.T, -1)
        outer = int(case["outer_markers"])
        visual, keep = [0] * (case["prefix"] + outer), [True] * (case["prefix"] + outer)
        for time, keep_frame in zip(case["timestamps"], keep_THW.tolist()):
            text = len(stamp_tokens(f"<{time:.1f} seconds>", stamp)) + 1
            visual += [0] * text + [1] * grid.tokens_per_frame + [0]
            keep += [True] * text + keep_frame + [True]
        visual += [0] * (outer + case["suffix"])
        keep += [True] * (outer + case["suffix"])
        positions, following = rope_positions(torch.tensor(visual, dtype=torch.bool), frame_boxes(grid))
        survivors = positions[:, torch.tensor(keep)]
        np.testing.assert_array_equal(survivors, z[f"{case['key']}_pos_preserving"], err_msg=str(case))
        assert following == case["preserving_next_pos"]


def stamp_tokens(text: str, ids: dict[str, int]) -> list[int]:
    tokens = []
    while text:
        piece = max((p for p in ids if text.startswith(p)), key=len)
        tokens.append(ids[piece])
        text = text[len(piece) :]
    return tokens
