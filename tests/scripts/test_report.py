from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from scripts import benchmark, report
from tests.runs import trained

HEADINGS = (
    *("Accuracy by pruning rate", "Time to first token by pruning rate", "Loss by pruning rate", "Drawn rates"),
    *("Tokens saved", "Where a step's time goes", "Quarantined samples", "Hardware and commit", "Commands"),
)


@pytest.fixture
def page(words, questions, tmp_path, monkeypatch):
    """The page of a run with a long command line, with a measured prefill."""
    monkeypatch.setattr(sys, "argv", ["train/run.py", "data.train=" + "long_" * 40])
    row = json.loads(questions.read_text().splitlines()[0])
    with questions.open("a") as file:
        file.write(json.dumps(row | {"id": "lost", "video": "/none.mp4"}) + "\n")
    trained(*words("train.steps=2", f"data.eval={questions}", "eval.limit=1"))
    prefill = ["prefill", "shape=tiny", "rates=[0,0.75]", "rounds=1", "extras=[]", "tokens=64"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *prefill, f"out={tmp_path / 'prefill.json'}"])
    benchmark.main()
    report.main(report.Options(run=str(tmp_path / "run"), prefill=str(tmp_path / "prefill.json")))
    return tmp_path / "run" / "report.html"


@pytest.mark.slow
def test_a_run_is_one_page_that_needs_no_other_file(page):
    text = page.read_text()
    assert [heading for heading in HEADINGS if f"<h2>{heading}</h2>" not in text] == []
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) >= 7 and all(source.startswith("data:") for source in sources)
    assert re.search(r"<td>0\.75</td><td>\d", text)  # seconds of the prefill
    assert "step 2" in text and "None: every sample was used." not in text and "Not recorded" not in text


@pytest.fixture(scope="module")
def browser() -> list[str]:
    """The command that prints a page as a browser shows it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Debian's chromium")
    return [program, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]


@pytest.mark.slow
def test_a_browser_shows_every_section_without_an_error(browser, page):
    command = [*browser, "--enable-logging=stderr", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.stdout.count("<section>") >= 9 and "CONSOLE" not in shown.stderr


@pytest.mark.slow
def test_no_section_of_the_page_is_wider_than_its_window(browser, page):
    measure = "<script>document.title = document.documentElement.scrollWidth - innerWidth</script></body>"
    page.write_text(page.read_text().replace("</body>", measure))
    command = [*browser, "--window-size=1200,900", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert float(re.findall(r"<title>(.*)</title>", shown)[0]) <= 0


def test_a_folder_that_is_no_run_has_no_page(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.yaml: give the run_dir"):
        report.main(report.Options(run=str(tmp_path)))


def test_a_file_that_is_no_evaluation_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json: not what scripts/evaluate\.py"):
        report.main(report.Options(results=[str(tmp_path / "x.json")], out=str(tmp_path / "x.png")))


@pytest.mark.parametrize(
    "options",
    [
        report.Options(sweep="sweep", run="run"),
        report.Options(sweep="sweep", results=["a.json"]),
        report.Options(run="run", title="B"),
        report.Options(out="curve.png", prefill="prefill.json"),
    ],
    ids=str,
)
def test_an_option_without_effect_is_refused(options):
    with pytest.raises(ValueError, match="has no effect"):
        report.main(options)
