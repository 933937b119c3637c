import json

import pytest

from data.loader import Step
from data.types import Quarantined
from tests.runs import trained
from train.callbacks.bad_sample_limit import BadSampleLimit
from train.callbacks.base import StepResult

LOST = [Quarantined("a", "a.mp4: ends at 3 s"), Quarantined("b", "b.mp4: ends at 7 s"), Quarantined("c", "c.jpg: gone")]


def step(good, bad):
    return {"samples": good, "quarantined/decoding": bad}


def test_a_few_bad_samples_at_the_beginning_prove_nothing(tmp_path):
    limit = BadSampleLimit(0.1, tmp_path)
    for _ in range(4):
        limit.after_report(1, step(0, 1))
    for _ in range(100):
        limit.after_report(1, step(19, 1))


def test_too_many_bad_samples_stop_the_run_with_the_commonest_reason(tmp_path):
    limit = BadSampleLimit(0.1, tmp_path / "quarantine.jsonl")
    limit.after_step(StepResult(1, Step((), tuple(LOST)), (), (), norm=1.0))
    limit.after_report(1, step(97, 3))
    with pytest.raises(ValueError, match=r"^13 of the 110 samples so far .*\(2\): ends at N s; .*quarantine.jsonl"):
        limit.after_report(1, step(0, 10))


def test_a_mistake_that_strikes_every_sample_stops_the_run_at_once(tmp_path):
    with pytest.raises(ValueError, match="11 of the 11 samples"):
        BadSampleLimit(0.1, tmp_path).after_report(1, step(0, 11))


def audited(words, questions, bad, *more):
    """A start over the eight rows, of which so many have no video."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    for row in rows[:bad]:
        row["video"] = "gone.mp4"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained(*words("preflight=only", "show=false", *more))


@pytest.mark.parametrize(("bad", "fraction"), [(4, 0.1), (1, 0.0)])
def test_the_audit_stops_a_run_above_the_fraction_and_lists_the_rows(words, questions, tmp_path, bad, fraction):
    with pytest.raises(
        ValueError, match=rf"^data.train: {bad} of 8 rows .*most often \({bad}\): no such file.*quarantine.jsonl"
    ):
        audited(words, questions, bad, f"data.max_bad_fraction={fraction}")
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == bad


@pytest.mark.parametrize(("bad", "fraction"), [(3, 0.1), (4, 0.5)])
def test_a_few_bad_rows_of_a_small_file_stop_nobody(words, questions, capsys, bad, fraction):
    audited(words, questions, bad, f"data.max_bad_fraction={fraction}")
    assert f"data.train: {bad} of 8 rows cannot be used, most often ({bad}): no such file" in capsys.readouterr().out


def test_files_that_decoding_alone_shows_to_be_bad_stop_the_run(words, questions):
    words = words("data.audit=false", "train.steps=9", "data.max_bad_fraction=0", "preflight=off", "show=false")
    questions.write_text(questions.read_text().replace("bigbuckbunny.mp4", "gone.mp4"))
    with pytest.raises(ValueError, match=r"of the \d+ samples so far cannot be used, .* no such file"):
        trained(*words)
