import pytest
import torch

from data.encoding.labels import Labeller, check_rendered
from data.types import IGNORE, ImageRef, RowError, Sample, Turn

QUESTION = "What colour?\nA. red\nB. blue\n(C) green"


@pytest.fixture
def labeller(processor):
    return Labeller(processor.tokenizer)


def chat(*turns):
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def test_every_answer_is_labelled_up_to_its_closing_token_and_nothing_else(labeller):
    text = chat(
        ("system", "assistant"), ("user", "hi"), ("assistant", "yes"), ("user", "sure?"), ("assistant", "no, two")
    )
    ids = torch.tensor(labeller.tokens(text))
    labels = labeller.labels(ids, [True, True], "r")
    assert labeller.tokenizer.decode(labels[labels != IGNORE]) == "yes<|im_end|>no, two<|im_end|>"
    assert torch.equal(labels[labels != IGNORE], ids[labels != IGNORE])


def test_what_the_generation_prompt_writes_carries_no_loss(processor):
    labeller = Labeller(processor.tokenizer, "<think>\n\n</think>\n\n")
    ids = torch.tensor(labeller.tokens(chat(("user", "hi"), ("assistant", "<think>\n\n</think>\n\nyes"))))
    labels = labeller.labels(ids, [True], "r")
    assert labeller.tokenizer.decode(labels[labels != IGNORE]) == "yes<|im_end|>"


def test_an_answer_that_merges_with_its_header_is_refused(labeller):
    ids = torch.tensor(labeller.tokens(chat(("user", "hi"))))
    with pytest.raises(RowError, match=r"r: 1 assistant turns but 0 answers"):
        labeller.labels(ids, [True], "r")


@pytest.mark.parametrize("text", ["a <|im_end|> b", "<|video_pad|>", "<|im_start|>assistant\nyes<|im_end|>"])
def test_special_tokens_in_text_are_refused(labeller, text):
    with pytest.raises(RowError, match=r"7: its text contains the special token <\|"):
        labeller.check(Sample("7", (Turn("user", (text,)),)))


@pytest.mark.parametrize("answer", ["B", "B.", "B. blue", "B) blue"])
def test_choices_are_the_first_tokens_of_the_options(labeller, answer):
    (choices,) = labeller.choices((Turn("user", (QUESTION,)), Turn("assistant", (answer,))))
    assert [labeller.tokenizer.decode([token]) for token in choices] == ["A", "B", "C"]
    assert labeller.tokens(answer)[0] == choices[1]


@pytest.mark.parametrize(
    ("question", "answer"), [(QUESTION, "D"), (QUESTION, "blue"), (QUESTION, "A red one"), ("What? A", "A")]
)
def test_free_form_answers_offer_no_choices(labeller, question, answer):
    assert labeller.choices((Turn("user", (question,)), Turn("assistant", (answer,)))) == ((),)


def test_options_whose_answers_begin_with_one_token_offer_no_choices(labeller):
    assert len({labeller.tokens(f"({letter})")[0] for letter in "ABC"}) == 1  # "("
    assert labeller.choices((Turn("user", (QUESTION,)), Turn("assistant", ("(B)",)))) == ((),)


def test_a_single_option_is_no_choice(labeller):
    assert labeller.choices((Turn("user", ("What colour?\nA. red",)), Turn("assistant", ("A",)))) == ((),)


def test_a_medium_keeps_text_parts_around_it_apart(labeller):
    labeller.check(Sample("7", (Turn("user", ("<|im_", ImageRef("a.png"), "end|>")),)))


def test_a_text_that_the_template_drops_is_not_found_in_an_equal_one_before_it():
    sample = Sample("7", (Turn("user", ("yes",)), Turn("assistant", ("yes",))))
    check_rendered(sample, "user: yes assistant: yes")
    with pytest.raises(RowError, match=r"7: the chat template drops text of turn 2 \(assistant\)"):
        check_rendered(sample, "user: yes assistant:")
