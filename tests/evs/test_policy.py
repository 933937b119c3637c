import json

import pytest

from evs.policy import FILE, Policy, highest_rate, read


def test_what_was_written_is_read(tmp_path):
    policy = Policy(fps=4.0, max_pixels=25088, scorer_dtype=None, rates={"name": "Uniform", "high": 0.9})
    assert policy.write(tmp_path) == tmp_path / FILE
    assert read(tmp_path) == policy


def test_a_checkpoint_of_before_has_none(tmp_path):
    assert read(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "not JSON"), ("[]", "version 1"), ('{"version": 2}', "version 1"), ('{"version": 1, "fpz": 2}', "'fpz'")],
)
def test_a_file_that_cannot_be_followed_is_named(tmp_path, text, reason):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", ["evs"]),
        ("method", None),
        ("fps", "2"),
        ("max_frames", 2.5),
        ("prune_at", {}),
        ("curve", []),
        ("times", 1),
    ],
)
def test_a_hostile_value_is_named(tmp_path, key, value):
    (tmp_path / FILE).write_text(json.dumps({"version": 1, key: value}))
    with pytest.raises(ValueError, match=rf"evs\.json: {key}="):
        read(tmp_path)


def test_the_file_is_flat_json_with_its_version(tmp_path):
    values = json.loads(Policy().write(tmp_path).read_text())
    assert (values["version"], values["method"], values["fps"], values["max_frames"]) == (1, "evs", 2.0, 768)


@pytest.mark.parametrize(
    ("rates", "highest"),
    [
        ({"name": "Constant", "rate": 0.5}, 0.5),
        ({"name": "Uniform", "low": 0.0, "high": 0.9}, 0.9),
        ({"name": "Beta", "mode": 0.75, "low": 0.0, "high": 0.95}, 0.95),
        ({"name": "Choice", "rates": [0.0, 0.75, 0.25], "weights": None}, 0.75),
        ({"name": "Mixture", "components": [{"rate": 0.3}, {"low": 0.0, "high": 0.6}]}, 0.6),
        ({"name": "Curriculum", "stages": [{"high": 0.8}, {"components": [{"rate": 0.85}]}], "steps": [0, 9]}, 0.85),
        ({"name": "FrameBeta", "mode": 0.75}, None),
        ({"name": "Mixture", "components": [{"rate": 0.3}, {"mode": 0.5}]}, None),
        ({}, None),
    ],
)
def test_the_highest_rate_of_every_distribution_is_in_its_configuration(rates, highest):
    assert highest_rate(rates) == highest
