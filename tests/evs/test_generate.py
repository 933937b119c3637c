from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evs.families import adapter_for, towers_of
from evs.generate import Decoding, continue_at, generate, next_positions
from evs.methods.evs import FrameDelta
from evs.pipeline import EncodedBatch
from evs.pruning import keep_mask, prune
from tests.evs.models import GLM, IMAGE, MIXED, VIDEO, alone, prompts, stock_inputs, tiny_model

STEPS = 6
# Positions of these equal the library's own, which for Qwen2.5-VL continue text at base + max(h, w).
SHORT = [[3, ("video", (2, 3, 3)), 5], [2, ("image", (1, 2, 2)), 1, ("video", (2, 4, 4)), 4]]


@pytest.mark.parametrize("sample", range(len(SHORT)))
def test_rate_zero_is_the_library_s_greedy_generation(model, family, sample) -> None:
    batch = prompts(family, [SHORT[sample]])
    ours = generate(model, adapter_for(model), batch, 0.0, Decoding(STEPS, eos_ids=()))[0]
    if (stock := stock_inputs(family, batch)) is None:
        pytest.skip("the library takes no prompt with both videos and images")
    inputs = vars(stock) | ({} if family == "nemotron_h_omni" else {"mm_token_type_ids": _types(batch, family)})
    if family == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = batch.second_per_grid_V
    theirs = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, eos_token_id=None)
    assert list(ours.tokens) == theirs[0, len(batch.input_ids_N) :].tolist()


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_cached_decoding_equals_decoding_the_whole_sequence_again(model, batch, rate) -> None:
    adapter = adapter_for(model)
    outs = generate(model, adapter, batch, rate, Decoding(STEPS, eos_ids=(), logprobs=3))
    x, features = adapter.encode_media(batch, adapter.embed_prompt(batch))
    grids = adapter.grids(batch)
    pruned = prune(x, keep_mask(x, features, grids, [rate] * len(grids), FrameDelta()))
    following = next_positions("preserve", x, pruned)
    for i, out in enumerate(outs):
        logits = _teacher_forced(adapter, pruned, i, out.tokens, int(following[i]))
        logprobs = logits.log_softmax(-1)
        assert logits.argmax(-1).tolist() == list(out.tokens)
        for step, top in enumerate(out.logprobs):
            for token, value in top.items():
                assert value == pytest.approx(float(logprobs[step, token]), abs=1e-4)


def test_a_prompt_s_answer_does_not_depend_on_its_batch(model, family, batch) -> None:
    decoding = Decoding(STEPS, eos_ids=(), sample=True, seed=3)
    together = generate(model, adapter_for(model), batch, 0.5, decoding)
    for i, out in enumerate(together):
        assert generate(model, adapter_for(model), alone(batch, family, MIXED, i), 0.5, decoding)[0] == out


def test_generation_stops_at_eos_and_reports_what_was_kept(model, batch) -> None:
    free = generate(model, adapter_for(model), batch, 0.5, Decoding(STEPS, eos_ids=()))
    eos = free[0].tokens[2]
    out = generate(model, adapter_for(model), batch, 0.5, Decoding(STEPS, eos_ids=(eos,)))[0]
    assert out.tokens == free[0].tokens[: free[0].tokens.index(eos) + 1]
    assert sum(out.frames[0]) == 12 and out.frames[0][0] == 6  # 4 grids of 2x3 at .5, the first whole
    assert out.prompt_tokens - out.kept_tokens == 12


def test_processors_see_the_unpruned_prompt_and_choose(model, batch) -> None:
    seen = []

    def only_seven(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape[1])
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)

    outs = generate(model, adapter_for(model), batch, 0.9, Decoding(2, eos_ids=(), sample=True, processors=only_seven))
    assert all(out.tokens == (7, 7) for out in outs)
    sizes = batch.segment_N.bincount().tolist()
    assert seen == [*sizes, *(size + 1 for size in sizes)]


def test_a_server_s_scheme_changes_generation_only_where_it_prunes(family, batch) -> None:
    if family != "qwen2_5_vl":
        with pytest.raises(ValueError, match=f"scheme 'vllm' is unknown for {family}"):
            adapter_for(tiny_model(family), "vllm")
        return
    model = tiny_model(family)
    decoding = Decoding(STEPS, eos_ids=(), logprobs=3)
    ours, theirs = adapter_for(model), adapter_for(model, "vllm")
    assert generate(model, ours, batch, 0.0, decoding) == generate(model, theirs, batch, 0.0, decoding)
    assert generate(model, ours, batch, 0.5, decoding) != generate(model, theirs, batch, 0.5, decoding)


def test_answers_continue_at_the_positions_after_their_prompts(model, family, batch) -> None:
    if family == "nemotron_h_omni":
        return  # its language model has no rotary positions
    x = EncodedBatch(adapter_for(model), batch, FrameDelta()).prune([0.5] * len(batch.video_grid_thw_V3), pruned=True).x
    ends = x.segment_N.bincount().cumsum(0)
    given: list[torch.Tensor] = []
    hook = towers_of(model).language.register_forward_pre_hook(
        lambda _, args, options: given.append(options["position_ids"]), with_kwargs=True
    )
    continue_at(model, x, ends.tolist(), Decoding(2, eos_ids=()))
    hook.remove()
    last = x.positions_PN[:, ends - 1].amax(0)  # the prompts end with text
    assert torch.equal(given[-1].reshape(-1, len(ends))[-1], last + 1)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_outside_the_unit_interval_is_refused(model, batch, rate) -> None:
    with pytest.raises(ValueError, match=rf"rate {rate} is outside \[0, 1\)"):
        generate(model, adapter_for(model), batch, rate)


def _types(batch, family: str) -> torch.Tensor:
    """The library's own mark of images (1) and videos (2)."""
    if family in GLM:
        return (batch.input_ids_N == IMAGE).long()[None] * (1 + batch.video_M.any())
    return ((batch.input_ids_N == IMAGE).long() + 2 * (batch.input_ids_N == VIDEO).long())[None]


def _teacher_forced(adapter, x, sample: int, tokens: tuple[int, ...], next_position: int) -> torch.Tensor:
    """Logits of every generated token, from one uncached pass over prompt and answer."""
    own = x.segment_N == sample
    answer = torch.tensor(tokens[:-1])
    embeds = adapter.model.get_input_embeddings()(answer)
    before = int(x.visual_N[x.segment_N < sample].sum())
    visual = int(x.visual_N[own].sum())
    steps = torch.arange(next_position, next_position + len(answer)).expand(len(x.positions_PN), -1)
    whole = replace(
        x,
        embeds_ND=torch.cat([x.embeds_ND[own], embeds]),
        positions_PN=torch.cat([x.positions_PN[:, own], steps], dim=1),
        segment_N=torch.zeros(int(own.sum()) + len(answer), dtype=torch.long),
        labels_N=torch.cat([x.labels_N[own], answer]),
        video_N=torch.cat([x.video_N[own], torch.full_like(answer, -1)]),
        visual_N=torch.cat([x.visual_N[own], torch.zeros_like(answer, dtype=torch.bool)]),
        deepstack=tuple(rows[before : before + visual] for rows in x.deepstack),
    )
    with torch.no_grad():
        return towers_of(adapter.model).head(adapter.decode(whole))[-len(tokens) :]
