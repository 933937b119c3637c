"""The study of recipes, from its command line: resumable, at equal compute, and honest about spread."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import pytest

from scripts import study
from scripts.bench.timing import ROOT
from scripts.recipes import page, tables
from scripts.recipes.results import Result, difference
from scripts.recipes.runs import Job, Seed
from scripts.recipes.table import RECIPES, SERVED, named
from tests.runs import composed
from train.evaluation.answers import Answer

KIND = {f"{video:05d}-static": "static" for video in range(200)}


def result(name: str, seed: int, right: float, rates: tuple[float, ...] = (0.5,)) -> Result:
    answers = [
        Answer(sample, rate, sample, float(i < right * 200), "greedy", "", 1.0, 1, 1, 1)
        for rate in rates
        for i, sample in enumerate(KIND)
    ]
    return Result(name, seed, tuple(answers), KIND, 1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_is_a_run(recipe):
    config = composed("+experiment=study", "model.path=m", "data.train=d", *recipe.arguments(40))
    assert config.train.steps == 40 and config.model.freeze == ["vision"]


def test_a_difference_counts_above_its_spread_only():
    steady = difference([result("a", seed, 0.8) for seed in (0, 1)], [result("b", seed, 0.6) for seed in (0, 1)])
    assert steady.counts and steady.mean == pytest.approx(0.2) and steady.paired.p < 0.01
    unsteady = difference([result("a", 0, 0.9), result("a", 1, 0.7)], [result("b", 0, 0.5), result("b", 1, 0.9)])
    assert unsteady.counts is False and unsteady.spread > abs(unsteady.mean)
    assert difference([result("a", 0, 0.9)], [result("b", 0, 0.5)]).counts is None


def test_a_table_says_which_differences_count():
    seeds = (0, 1)
    results = {
        name: [result(name, seed, 0.5, (0.0, 0.75)) for seed in seeds] for name in ("base", "control", "uniform")
    }
    results["beta"] = [result("beta", 0, 0.45, (0.0, 0.75)), result("beta", 1, 0.54, (0.0, 0.75))]
    results["fixed"] = [result("fixed", seed, 0.8, (0.0, 0.75)) for seed in seeds]
    rows = {line.split("|")[1].strip(): line for line in tables.by_rate(results, {}).splitlines()[2:]}
    assert rows["beta"].endswith("| 6.4 | tie |") and rows["fixed"].endswith("| 0.0 | better |")
    one_seed = tables.by_rate({name: results[:1] for name, results in results.items()}, {})
    assert "one seed |" in one_seed and "| better |" not in one_seed


def test_a_rate_that_reduced_videos_cannot_reach_is_shown_as_such_and_compared_at_the_others_only():
    results = {name: [result(name, seed, 0.5, (0.0, 0.75)) for seed in (0, 1)] for name in ("base", "uniform")}
    results["smaller_frames"] = [result("smaller_frames", seed, 0.7, (0.0,)) for seed in (0, 1)]
    row = tables.by_rate(results, {}).splitlines()[-1]
    assert row.startswith("| smaller_frames | before uptraining | 70.0 | not reached | not reached |  | 1 | +20.0 |")
    reduced = {"frames": result("uniform", 0, 0.4, (0.0, 0.75)).answers, "pixels": ()}
    unreached = {"pixels": result("uniform", 0, 0.4, (0.5,)).answers}
    kept = {("frames", 0.75): 0.25}
    results["uniform"] = [replace(one, reduced=reduced | unreached, kept=kept) for one in results["uniform"]]
    assert tables.equal_tokens(results).splitlines()[-1] == (
        "| uniform | 0.75 | 50.0 | 40.0 at 25 % | +10.0 (+7.2 to +13.0), better | not reached |  |"
    )


def test_a_model_is_shown_under_every_method_that_it_is_served_by():
    served = [dict.fromkeys(SERVED, accuracy) | {"input": 0.5} for accuracy in (0.8, 0.9)]
    results = [replace(result("uniform", seed, 0.5), served=one) for seed, one in enumerate(served)]
    table = tables.transfer({"base": [result("base", 0, 0.5)], "uniform": results})
    assert table.splitlines()[2:] == ["| uniform | 85.0 ± 7.1 | 85.0 ± 7.1 | 85.0 ± 7.1 | 50.0 ± 0.0 |"]


def test_the_main_recipes_include_the_best_uptrained_one():
    accuracies = {"base": 0.1, "control": 0.9, "uniform": 0.2, "pixels": 0.5, "input": 0.4, "fewer_frames": 0.8}
    results = {name: [result(name, 0, accuracy)] for name, accuracy in accuracies.items()}
    assert tables.main_recipes(results) == ["base", "control", "uniform", "pixels", "fewer_frames"]


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="recipes=best is unknown: use control, fixed"):
        named(["best"])


def test_a_training_set_of_fewer_or_smaller_frames_has_the_tokens_that_pruning_leaves_on_average(tmp_path):
    suite = replace(study.quick().suite, kinds=("static",), items=1, grids=(8,))
    study.generate_split(tmp_path, 40, suite)
    for name, key, most in (("frames", "max_frames", 16), ("pixels", "max_pixels", 64 * 64)):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        assert len({row[key] for row in rows}) > 5
        assert 0.45 < fmean(row[key] / most for row in rows) < 0.65  # 1 - U(0, .9) has the mean .55
    assert len((tmp_path / "stills.jsonl").read_text().splitlines()) == 80


def test_a_mixture_names_the_videos_and_the_share_of_images_and_text(tmp_path):
    seed = Seed(tmp_path, 0, tmp_path / "a b")
    config = composed("+experiment=study", "model.path=m", seed.mixture(0.1, "frames"))
    assert config.data.train == {
        "videos": {"path": str(tmp_path / "a b/train/frames.jsonl"), "weight": 0.9},
        "stills": {"path": str(tmp_path / "a b/train/stills.jsonl"), "weight": 0.1},
    }
    assert seed.mixture(0.0, None).count("path") == 1


def test_a_loss_on_images_and_text_is_told_from_the_control():
    kinds = {sample: ("image", "text")[number % 2] for number, sample in enumerate(KIND)}

    def stills(name: str, right: float) -> list[Result]:
        return [replace(one, kinds=kinds, stills=one.answers) for one in [result(name, s, right) for s in (0, 1)]]

    table = tables.stills(
        {"base": stills("base", 0.9), "control": stills("control", 0.9), "uniform": stills("uniform", 0.7)}
    )
    assert (
        table.splitlines()[-1].startswith("| uniform | 70.0 | 70.0 |")
        and table.endswith("| worse |")
        and "-20.0" in table
    )


def test_a_page_shows_the_command_without_default_values():
    assert study.command(study.Options(seeds=[0, 1], threads=1)) == (
        "python scripts/study.py preset=quick seeds=[0,1] threads=1"
    )


def test_a_study_replaces_only_what_is_between_the_markers(tmp_path):
    path = tmp_path / "page.md"
    assert page.insert(path, "first") == f"# Recipes\n\n{page.BEGIN}\nfirst\n{page.END}\n"
    path.write_text(f"before\n{page.BEGIN}\nfirst\n{page.END}\nafter\n")
    assert page.insert(path, "second") == f"before\n{page.BEGIN}\nsecond\n{page.END}\nafter\n"


def test_a_page_without_markers_is_never_overwritten(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("written by hand")
    with pytest.raises(ValueError, match=r"page\.md has no lines <!-- study: begin -->"):
        page.insert(path, "second")


def test_the_page_of_the_repository_takes_a_study():
    assert "# Which recipe" in page.insert(ROOT / "docs" / "recipes.md", "second")


def test_a_run_whose_baselines_are_missing_is_not_done(tmp_path):
    seed = Seed(tmp_path, 0, tmp_path)
    job = Job(seed, "uniform", (), (0.0, 0.5), 0.1, baselines=("frames",))
    assert not job.done
    path = seed.result("uniform")
    path.parent.mkdir()
    path.write_text(json.dumps({"scores": []}))  # evaluate.py was stopped before the baselines
    assert not job.done
    path.write_text(json.dumps({"scores": [], "baselines": [{"baseline": "frames", "rate": 0.5}]}))
    assert job.done


def test_rates_that_the_tables_compare_are_required(tmp_path):
    with pytest.raises(ValueError, match=r"rates=\[0\.0, 0\.75\] lack 0\.85, which the tables compare"):
        study.main(study.Options(out=str(tmp_path), rates=[0.0, 0.75]))


@pytest.mark.faults
def test_a_study_continues_where_it_was_killed_and_repeats_nothing(tmp_path, capsys):
    small = {"train_videos": 8, "held_out_videos": 2, "base_steps": 1, "steps": 2, "recipes": ["uniform", "fixed"]}
    options = study.Options(out=str(tmp_path / "out"), page=str(tmp_path / "page.md"), rates=[0.0, 0.75, 0.85], **small)
    study.main(options)
    text = (tmp_path / "page.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if line.startswith("| ")}
    assert {"base", "uniform", "fixed"} <= rows.keys() and (tmp_path / "page.png").is_file()
    (tmp_path / "out/seed0/fixed/result.json").unlink()  # as if killed in its evaluation
    capsys.readouterr()
    study.main(options)
    assert "1 of 2 runs are done already" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"runs of another study, with a different preset"):
        study.main(study.Options(out=options.out, page=options.page, rates=[0.0, 0.75, 0.85], **small | {"steps": 3}))
