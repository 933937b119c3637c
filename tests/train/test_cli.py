"""The scripts' command lines: typed values in, one line out for a mistake."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.runs import composed
from train import cli


@dataclass
class Inner:
    depth: int = 2


@dataclass(frozen=True)
class Options:
    out: Path
    rates: list[float] = field(default_factory=lambda: [0.0])
    push: str | None = None
    inner: Inner = field(default_factory=Inner)


def test_words_become_typed_fields():
    options = cli.parse(Options, ["out=a/b", "rates=[0,0.5]", "inner.depth=3", "push=user/name"])
    assert options == Options(Path("a/b"), [0.0, 0.5], "user/name", Inner(3))


@dataclass(frozen=True)
class Question:
    prompt: str
    rate: float = 0.0


@pytest.mark.parametrize("text", ["Here: what?", '"why"?', "[a], {b}", "#1 = 2", "null", "5"])
def test_a_text_is_taken_as_it_stands(text):
    assert cli.parse(Question, [f"prompt={text}", "rate=0.5"]) == Question(text, 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rats=[0]", "out=a"], "unknown argument 'rats'; did you mean 'rates'?"),
        (["out=a", "inner.dept=1"], "inner.dept: Key 'dept' not in 'Inner'"),
        (["out=a", "inner.depth=x"], "inner.depth: Value 'x' of type 'str' could not be converted to Integer"),
        (["out"], "'out': write arguments as key=value"),
        (["rates=[0]"], "missing out=..."),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(Options, words)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_users_error_in_main_is_one_line(capsys):
    def main(options: Options) -> None:
        raise ValueError(f"no such folder:\n{options.out}")

    with pytest.raises(SystemExit):
        cli.run(main, Options, ["out=here"])
    assert capsys.readouterr().err == "error: no such folder: here\n"


PATHS = ["my file=é[1],(2).jsonl", "it's.jsonl", 'a"b.jsonl', "a\\", "plain/path-1.jsonl", "[x].jsonl", "a: b"]
REQUIRED = ["model.path=m", "data.train=d", "train.steps=1"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_survives_the_quotes_that_hydra_needs(path):
    assert (
        composed(cli.override("data.cache", path), *(["model.path=m", "data.train=d", "train.steps=1"])).data.cache
        == path
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_printed_command_can_be_pasted(path, tmp_path):
    (word,) = shlex.split(cli.command("export", f"push={path}"))[2:]
    assert cli.parse(Options, ["out=a", word]).push == path


@dataclass
class Report:
    out: str = "page.html"
    title: str = "A"
    results: list[str] = field(default_factory=list)


def test_an_option_that_would_be_ignored_is_named_with_its_remedy():
    cli.refuse_unused(Report(out="b.html"), ("title", "results"), "on a page: remove it")
    for options, named in ((Report(title="B"), "title=B"), (Report(results=["a"]), r"results=\['a'\]")):
        with pytest.raises(ValueError, match=f"{named} has no effect on a page: remove it"):
            cli.refuse_unused(options, ("title", "results"), "on a page: remove it")
