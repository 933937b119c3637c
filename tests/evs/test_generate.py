from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version
from transformers import GenerationConfig

from evs.families import adapter_for, spec_of, towers_of
from evs.generate import continue_at, generate, generate_pruned, next_positions
from evs.methods.evs import FrameDelta
from evs.pipeline import EncodedBatch
from evs.pruning import keep_mask, prune
from evs.types import DecoderInputs
from tests.evs.models import DENSE, GLM, IMAGE, MIXED, VIDEO, alone, prompts, stock_inputs, tiny_model

STEPS = 6
GREEDY = {"max_new_tokens": STEPS, "eos_token_id": None}
# Positions of these equal the library's own, which for Qwen2.5-VL continue text at base + max(h, w).
SHORT = [[3, ("video", (2, 3, 3)), 5], [2, ("image", (1, 2, 2)), 1, ("video", (2, 4, 4)), 4]]


@pytest.fixture(params=DENSE)
def family(request) -> str:
    return request.param


@pytest.mark.parametrize("sample", range(len(SHORT)))
def test_rate_zero_is_the_library_s_greedy_generation(model, family, sample) -> None:
    batch = prompts(family, [SHORT[sample]])
    ours = generate(model, adapter_for(model), batch, 0.0, **GREEDY)[0]
    if (inputs := library_inputs(family, batch)) is None:
        pytest.skip("the library takes no prompt with both videos and images")
    theirs = model.generate(**inputs, **GREEDY)
    assert list(ours.tokens) == theirs[0, len(batch.input_ids_N) :].tolist()


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_cached_decoding_equals_decoding_the_whole_sequence_again(model, batch, rate) -> None:
    adapter = adapter_for(model)
    outs = generate(model, adapter, batch, rate, logprobs=3, **GREEDY)
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
    together = generate(model, adapter_for(model), batch, 0.5, **GREEDY)
    for i, out in enumerate(together):
        assert generate(model, adapter_for(model), alone(batch, family, MIXED, i), 0.5, **GREEDY)[0] == out


def test_generation_stops_at_eos_and_reports_what_was_kept(model, batch) -> None:
    free = generate(model, adapter_for(model), batch, 0.5, **GREEDY)
    eos = free[0].tokens[2]
    out = generate(model, adapter_for(model), batch, 0.5, max_new_tokens=STEPS, eos_token_id=eos)[0]
    assert out.tokens == free[0].tokens[: free[0].tokens.index(eos) + 1]
    assert sum(out.frames[0]) == 12 and out.frames[0][0] == 6  # 4 grids of 2x3 at .5, the first whole
    assert out.prompt_tokens - out.kept_tokens == 12


def test_processors_see_the_surviving_prompt_and_choose(model, batch) -> None:
    seen = []

    def only_seven(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape)
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)

    settings = {**GREEDY, "max_new_tokens": 2, "do_sample": True, "logits_processor": [only_seven]}
    outs = generate(model, adapter_for(model), batch, 0.9, **settings)
    longest = max(out.kept_tokens for out in outs)
    assert all(out.tokens == (7, 7) for out in outs)
    assert seen == [(len(outs), longest), (len(outs), longest + 1)]


def test_a_server_s_scheme_changes_generation_only_where_it_prunes(family, batch) -> None:
    if family != "qwen2_5_vl":
        with pytest.raises(ValueError, match=f"scheme 'vllm' is unknown for {family}"):
            adapter_for(tiny_model(family), "vllm")
        return
    model = tiny_model(family)
    decoding = {**GREEDY, "logprobs": 3}
    ours, theirs = adapter_for(model), adapter_for(model, "vllm")
    assert generate(model, ours, batch, 0.0, **decoding) == generate(model, theirs, batch, 0.0, **decoding)
    assert generate(model, ours, batch, 0.5, **decoding) != generate(model, theirs, batch, 0.5, **decoding)


def test_answers_continue_at_the_positions_after_their_prompts(model, family, batch) -> None:
    if family == "nemotron_h_omni":
        return  # its language model has no rotary positions
    pruned = EncodedBatch(adapter_for(model), batch, FrameDelta()).prune(
        [0.5] * len(batch.video_grid_thw_V3), pruned=True
    )
    x = pruned.x
    ends = x.segment_N.bincount().cumsum(0)
    given: list[torch.Tensor] = []
    hook = towers_of(model).language.register_forward_pre_hook(
        lambda _, args, options: given.append(options["position_ids"]), with_kwargs=True
    )
    continue_at(model, x, batch.input_ids_N[pruned.keep_N], ends.tolist(), **{**GREEDY, "max_new_tokens": 2})
    hook.remove()
    last = x.positions_PN[:, ends - 1].amax(0)  # the prompts end with text
    assert torch.equal(given[-1].reshape(-1, len(ends))[-1], last + 1)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_outside_the_unit_interval_is_refused(model, batch, rate) -> None:
    with pytest.raises(ValueError, match=rf"rate {rate} is outside \[0, 1\)"):
        generate(model, adapter_for(model), batch, rate)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}], ids=["static", "none"])
def test_every_cache_gives_the_tokens_of_a_dynamic_one(model, batch, options) -> None:
    pruned = survivors(model, batch, 0.5)
    assert torch.equal(generate_pruned(model, *pruned, **GREEDY, **options), generate_pruned(model, *pruned, **GREEDY))


@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_assisted_decoding_gives_the_greedy_tokens(model, family, batch, rate) -> None:
    pruned = survivors(model, alone(batch, family, MIXED, 3), rate)
    greedy = generate_pruned(model, *pruned, **GREEDY)
    # An n-gram of one token finds candidates that hold placeholders of media.
    for options in (
        {"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 1},
        {"assistant_model": tiny_model(family)},
    ):
        if spec_of(model.config).kernels:  # a recurrence cannot take back a candidate
            with pytest.raises(ValueError, match="not supported with stateful models"):
                generate_pruned(model, *pruned, **GREEDY, **options)
        else:
            assert torch.equal(generate_pruned(model, *pruned, **GREEDY, **options), greedy)


@pytest.mark.parametrize("sample", range(len(SHORT)))
def test_beams_at_rate_zero_are_those_of_the_unpruned_model(model, family, sample) -> None:
    batch = prompts(family, [SHORT[sample]])
    wrong = family in GLM or (family.startswith("qwen3_5") and Version(version("transformers")) < Version("5.23"))
    if (inputs := library_inputs(family, batch)) is None or wrong:
        pytest.skip("the library takes no prompt with both videos and images, or repeats videos wrongly for beams")
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    ours, theirs = generate_pruned(model, *survivors(model, batch, 0.0), **beams), model.generate(**inputs, **beams)
    assert torch.equal(ours, theirs)


def test_beams_of_a_batch_are_those_of_its_prompts(model, family, batch) -> None:
    beams = {**GREEDY, "num_beams": 3}
    together = generate_pruned(model, *survivors(model, batch, 0.5), **beams)
    for i in range(len(MIXED)):
        own = generate_pruned(model, *survivors(model, alone(batch, family, MIXED, i), 0.5), **beams)[0]
        assert torch.equal(together[i, -STEPS:], own[-STEPS:])


def test_sampling_is_a_function_of_the_seed(model, batch) -> None:
    def sampled(seed: int) -> list[tuple[int, ...]]:
        torch.manual_seed(seed)
        return [out.tokens for out in generate(model, adapter_for(model), batch, 0.5, do_sample=True, **GREEDY)]

    assert sampled(1) == sampled(1) != sampled(2)


def test_a_streamer_gets_every_token(model, family, batch) -> None:
    received: list[torch.Tensor] = []
    streamer = SimpleNamespace(put=received.append, end=lambda: None)
    (out,) = generate(model, adapter_for(model), alone(batch, family, MIXED, 0), 0.5, streamer=streamer, **GREEDY)
    assert tuple(map(int, received[1:])) == out.tokens


def test_the_checkpoint_s_way_of_sampling_is_not_applied_but_its_end_is(model, batch) -> None:
    greedy = generate(model, adapter_for(model), batch, 0.5, **GREEDY)
    stored = model.generation_config
    stored.update(do_sample=True, temperature=9.0, repetition_penalty=1.9, eos_token_id=[30, greedy[0].tokens[2]])
    ended = generate(model, adapter_for(model), batch, 0.5, max_new_tokens=STEPS)[0].tokens
    assert generate(model, adapter_for(model), batch, 0.5, **GREEDY) == greedy
    assert ended == greedy[0].tokens[: greedy[0].tokens.index(greedy[0].tokens[2]) + 1]
    own = GenerationConfig(max_new_tokens=STEPS, eos_token_id=greedy[0].tokens[1])
    assert generate(model, adapter_for(model), batch, 0.5, generation_config=own)[0].tokens[-1] == greedy[0].tokens[1]
    assert model.generation_config is stored
    penalised = generate_pruned(model, *survivors(model, batch, 0.5), do_sample=False, **GREEDY)
    assert penalised[:, -STEPS:].tolist() != [list(out.tokens) for out in greedy]


def test_only_the_last_token_of_a_prompt_enters_the_head(model, batch) -> None:
    shapes = []
    hook = towers_of(model).head.register_forward_hook(lambda _, args, out: shapes.append(out.shape[:2]))
    generate(model, adapter_for(model), batch, 0.5, **GREEDY)
    hook.remove()
    assert set(shapes) == {(len(MIXED), 1)}


def test_the_model_is_stock_again_after_generation(model, family, batch) -> None:
    ids = torch.arange(8)[None]
    before = model.generate(ids, **GREEDY)
    generate(model, adapter_for(model), batch, 0.5, **GREEDY)
    with pytest.raises(ValueError, match="max_nw_tokens"):
        generate(model, adapter_for(model), batch, 0.5, max_nw_tokens=3)
    assert torch.equal(model.generate(ids, **GREEDY), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_chunk_size": 4}, "decoded in one pass: leave out prefill_chunk_size"),
        ({"guidance_scale": 1.5}, "decoded in one pass"),
        ({"cache": "filled"}, "decoded in one pass"),
        ({"cache_implementation": "paged"}, "'paged' and negative_prompt_ids are not supported"),
        ({"negative_prompt_ids": torch.ones(1, 90, dtype=torch.long)}, "negative_prompt_ids are not supported"),
    ],
)
def test_what_would_decode_another_prompt_is_refused(model, batch, options, message) -> None:
    pruned = survivors(model, batch, 0.5)
    if "cache" in options:
        filled = generate_pruned(model, *pruned, return_dict_in_generate=True, **GREEDY)
        name = "cache" if "cache" in filled else "past_key_values"  # before transformers 5.24
        options = {name: filled[name]}
    with pytest.raises(ValueError, match=message) as raised:
        generate_pruned(model, *pruned, **GREEDY, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [{"num_beams": 2, "logprobs": 1}, {"do_sample": True, "num_return_sequences": 2}])
def test_more_than_one_sequence_for_a_prompt_is_refused(model, batch, options) -> None:
    with pytest.raises(ValueError, match="num_return_sequences, and logprobs of beams"):
        generate(model, adapter_for(model), batch, 0.5, **GREEDY, **options)


def survivors(model, batch, rate: float) -> tuple[DecoderInputs, torch.Tensor, torch.Tensor]:
    """The arguments of `generate_pruned` for a batch."""
    adapter = adapter_for(model)
    out = EncodedBatch(adapter, batch, FrameDelta()).prune([rate] * len(adapter.grids(batch)), pruned=rate > 0)
    return out.x, next_positions("preserve", out.embedded, out.x), batch.input_ids_N[out.keep_N]


def library_inputs(family: str, batch) -> dict | None:
    """What the library's own `generate` takes for a pack of one sample; None where it takes no such prompt."""
    if (stock := stock_inputs(family, batch)) is None:
        return None
    inputs = vars(stock) | ({} if family == "nemotron_h_omni" else {"mm_token_type_ids": _types(batch, family)})
    return inputs | ({"second_per_grid_ts": batch.second_per_grid_V} if family == "qwen2_5_vl" else {})


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
