"""`generate` of a model with pruning enabled, next to decoding by hand: the stock model reads the pruned embeddings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TopKLogitsWarper,
)

from evs import FrameDelta
from evs.families import adapter_for, spec_of, towers_of
from evs.generate import next_positions
from evs.pipeline import EncodedBatch
from evs.transformers import enable_pruning
from tests.evs.models import tiny_model
from tests.evs.test_transformers import batch_of, enabled, layout, padded

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "nemotron_h_omni")
ROW = [[3, ("video", (4, 2, 3)), 2, ("video", (4, 2, 3)), 4]]
NEW, RATE = 5, 0.6
FREE = {"max_new_tokens": NEW, "eos_token_id": None, "do_sample": False}


class Reference:
    """Decodes one prompt without a cache: every next token by a forward pass over the survivors and the answer."""

    def __init__(self, family: str) -> None:
        batch, self.model = batch_of(family, ROW), tiny_model(family)
        self.adapter = adapter_for(self.model)
        out = EncodedBatch(self.adapter, batch, FrameDelta()).prune([RATE] * 2, pruned=True)
        self.ids, self.x, self.next = batch.input_ids_N, out.x, int(next_positions("preserve", out.embedded, out.x)[0])

    @torch.no_grad()
    def logits(self, answer: list[int]) -> torch.Tensor:
        """[V] of the token that follows the answer."""
        x, token_A = self.x, torch.tensor(answer, dtype=torch.long)
        steps_A = torch.arange(self.next, self.next + len(answer)).expand(len(x.positions_PN), -1)
        whole = replace(
            x,
            embeds_ND=torch.cat([x.embeds_ND, self.model.get_input_embeddings()(token_A)]),
            positions_PN=torch.cat([x.positions_PN, steps_A], dim=1),
            segment_N=torch.zeros(len(x.segment_N) + len(answer), dtype=torch.long),
            labels_N=torch.cat([x.labels_N, token_A]),
            video_N=torch.cat([x.video_N, torch.full_like(token_A, -1)]),
            visual_N=torch.cat([x.visual_N, torch.zeros_like(token_A, dtype=torch.bool)]),
        )
        return towers_of(self.model).head(self.adapter.decode(whole))[-1]

    def chosen(self, processors: Any = (), sample: bool = False) -> list[int]:
        """The tokens of greedy decoding, or of sampling; processors see the whole prompt."""
        answer: list[int] = []
        for _ in range(NEW):
            scores_V = self.logits(answer)[None]
            for process in processors:
                scores_V = process(torch.cat([self.ids, torch.tensor(answer, dtype=torch.long)])[None], scores_V)
            answer.append(int(torch.multinomial(scores_V.softmax(-1), 1) if sample else scores_V.argmax()))
        return answer

    def beams(self, number: int) -> list[list[int]]:
        """The answers of a beam search, best first."""
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(NEW):
            candidates = []
            for score, answer in beams:
                values, tokens = self.logits(answer).log_softmax(-1).topk(number)
                candidates += [(score + float(v), [*answer, int(t)]) for v, t in zip(values, tokens)]
            beams = sorted(candidates, reverse=True)[:number]
        return [answer for _, answer in beams]


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in padded(family, batch_of(family, ROW)).items() if name != "labels"}


def answers(family: str, seed: int = 0, **options: Any) -> list[list[int]]:
    inputs, model = inputs_of(family), enabled(family, RATE)
    torch.manual_seed(seed)
    return model.generate(**inputs, **FREE | options)[:, inputs["input_ids"].shape[1] :].tolist()


def test_sampling_draws_what_sampling_by_hand_draws(family) -> None:
    reference, warpers = Reference(family), [RepetitionPenaltyLogitsProcessor(1.3), TopKLogitsWarper(8)]
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = reference.chosen(warpers, sample=True)
        assert answers(family, seed, do_sample=True, repetition_penalty=1.3, top_k=8) == [expected]


def test_beams_are_those_of_a_search_by_hand(family) -> None:
    assert answers(family, num_beams=3, num_return_sequences=3) == Reference(family).beams(3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1},
        {"assistant_model": "stock"},
        {"assistant_model": "pruned"},
    ],
    ids=["dynamic", "static", "no cache", "lookup", "assistant", "pruned assistant"],
)
def test_every_way_of_greedy_decoding_gives_the_tokens_of_decoding_by_hand(family, options) -> None:
    if "assistant_model" in options:
        assistant = tiny_model(family)
        if options["assistant_model"] == "pruned":
            enable_pruning(assistant, RATE)
        options = {"assistant_model": assistant}
    if spec_of(tiny_model(family).config).kernels and options.keys() & {"assistant_model", "prompt_lookup_num_tokens"}:
        with pytest.raises(ValueError, match="not supported with stateful models"):
            answers(family, **options)
        return
    assert answers(family, **options) == [Reference(family).chosen()]


def test_what_the_user_brings_sees_the_full_sequences() -> None:
    prompt, shown = inputs_of("qwen3_vl")["input_ids"][0].tolist(), []

    def note(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        shown.append(ids[0].tolist())
        return torch.zeros(len(ids), dtype=torch.bool)

    def processor(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        note(ids, scores)
        return scores

    (answer,) = answers("qwen3_vl", logits_processor=LogitsProcessorList([processor]))
    before = [prompt + answer[:i] for i in range(NEW + 1)]
    assert shown == before[:-1]
    shown.clear()
    answers("qwen3_vl", stopping_criteria=StoppingCriteriaList([note]))
    assert shown == before[1:]
    shown.clear()

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        note(ids[None], ids)
        return list(range(32))

    assert answers("qwen3_vl", prefix_allowed_tokens_fn=allowed) == [answer] and shown == before[:-1]
    end = StoppingCriteriaList([MaxLengthCriteria(len(prompt) + 2)])  # one of the library that counts
    assert answers("qwen3_vl", stopping_criteria=end) == [answer[:2]]


def test_a_penalty_that_skips_the_prompt_counts_the_answer() -> None:
    inputs = inputs_of("qwen3_vl")
    penalty = RepetitionPenaltyLogitsProcessor(1e6, prompt_ignore_length=inputs["input_ids"].shape[1])
    (answer,) = answers("qwen3_vl", logits_processor=LogitsProcessorList([penalty]))
    assert answer == Reference("qwen3_vl").chosen([penalty]) and len({*answer}) == NEW


def test_processors_of_beams_are_shown_their_own_prompts() -> None:
    inputs, rows = padded("qwen3_vl", batch_of("qwen3_vl", layout("qwen3_vl")), "left"), []
    prompts, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    del inputs["labels"]

    def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows.append(ids[:, :length])
        return scores

    enabled("qwen3_vl", RATE).generate(**inputs, **FREE, num_beams=2, logits_processor=LogitsProcessorList([note]))
    assert all(torch.equal(seen, prompts.repeat_interleave(2, 0)) for seen in rows) and len(rows) == NEW


def test_threads_that_generate_with_one_model_get_pruned_answers() -> None:
    (expected,), inputs, model = answers("qwen3_vl"), inputs_of("qwen3_vl"), enabled("qwen3_vl", RATE)
    waiting = Barrier(2)

    def answer(_: int) -> list[int]:
        waiting.wait()
        return model.generate(**inputs, **FREE)[0, -NEW:].tolist()

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(answer, range(2))) == [expected] * 2


@pytest.mark.parametrize("within", [False, True], ids=["model", "model within"])
def test_a_forward_waits_for_the_end_of_another_thread_s_generate(within) -> None:
    inputs, model = inputs_of("qwen3_vl"), enabled("qwen3_vl", RATE)
    call, outs, threads = model.base_model if within else model, [], []
    with torch.no_grad():
        (expected,) = call(**inputs).values()

    def forward(*_: Any, **__: Any) -> torch.Tensor:
        if not threads:
            threads.append(Thread(target=lambda: outs.append(call(**inputs)[0].detach())))
            threads[0].start()
            threads[0].join(0.2)
        return torch.zeros(1, dtype=torch.bool)

    model.generate(**inputs, **FREE, stopping_criteria=StoppingCriteriaList([forward]))
    threads[0].join()
    assert torch.equal(outs[0], expected)


def test_an_iterator_of_text_streams_the_answer_from_a_thread() -> None:
    class Tokenizer:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(f"{int(token)} " for token in ids)

    (expected,), inputs, model = answers("qwen2_5_vl"), inputs_of("qwen2_5_vl"), enabled("qwen2_5_vl", RATE)
    streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)
    thread = Thread(target=model.generate, kwargs={**inputs, **FREE, "streamer": streamer})
    thread.start()
    assert "".join(streamer).split() == [str(token) for token in expected]
    thread.join()


def test_a_second_turn_with_new_videos_is_refused_in_one_line(family) -> None:
    inputs, model = inputs_of(family), enabled(family, RATE)
    first = model.generate(**inputs, **FREE, return_dict_in_generate=True)
    name = "cache" if "cache" in first else "past_key_values"
    turn = torch.cat([first.sequences, inputs["input_ids"]], dim=1)
    media = {key: torch.cat([value, value]) for key, value in inputs.items() if "pixel" in key or "grid" in key}
    with pytest.raises(ValueError, match="videos cannot be added to a pruned chat: pass the whole conv") as raised:
        model.generate(input_ids=turn, **media, **{name: first[name]}, **FREE)
    assert "\n" not in str(raised.value)
