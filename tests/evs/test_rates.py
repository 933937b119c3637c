from __future__ import annotations

import pytest
import torch

from evs import Beta, Choice, Constant, Curriculum, FrameBeta, Mixture, Uniform, draw

DISTRIBUTIONS = [
    Constant(0.75),
    Uniform(0.0, 0.9),
    Choice([0.0, 0.5, 0.75], [1, 2, 1]),
    Beta(0.75, 8),
    Beta(0.95, 4, high=0.95),
    Mixture([Constant(0.0), Uniform(0.5, 0.9)], [1, 3]),
    Curriculum([Uniform(0.0, 0.3), Uniform(0.0, 0.9), Constant(0.5)], [0, 100, 300]),
    FrameBeta(1 - 1e-3),
]


@pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=lambda d: type(d).__name__)
def test_every_quantile_is_a_rate(dist):
    rates = dist.icdf(torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1])
    assert rates.min() >= 0 and rates.max() < 1


def test_quantiles_are_the_distributions():
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    assert Uniform(0.2, 0.6).icdf(u).quantile(0.25) == pytest.approx(0.3, abs=1e-3)
    a, b = 1 + 0.75 / 0.95 * 6, 1 + (1 - 0.75 / 0.95) * 6
    beta = torch.distributions.Beta(a, b)
    x = Beta(0.75, 8, 0.0, 0.95).icdf(u) / 0.95
    assert x.mean() == pytest.approx(float(beta.mean), abs=1e-4)
    assert x.var() == pytest.approx(float(beta.variance), abs=1e-4)
    choice = Choice([0.0, 0.5], [1, 3]).icdf(u)
    assert (choice == 0).double().mean() == pytest.approx(0.25)
    mixture = Mixture([Constant(0.1), Uniform(0.5, 0.9)], [1, 4]).icdf(u)
    assert (mixture == 0.1).double().mean() == pytest.approx(0.2)
    assert mixture[mixture > 0.1].mean() == pytest.approx(0.7, abs=1e-3)


def test_draws_are_a_function_of_seed_and_step():
    dist = Uniform()
    assert torch.equal(draw(dist, 4, seed=1, step=7), draw(dist, 4, seed=1, step=7))
    assert not torch.equal(draw(dist, 4, seed=1, step=7), draw(dist, 4, seed=1, step=8))
    assert not torch.equal(draw(dist, 4, seed=1, step=7), draw(dist, 4, seed=2, step=7))


def test_a_curriculum_moves_every_quantile_in_a_straight_line_from_stage_to_stage():
    dist = Curriculum([Uniform(0.0, 0.2), Uniform(0.4, 0.9), Constant(0.1)], [0, 100, 200])
    u = torch.tensor([0.0, 0.5, 0.99], dtype=torch.float64)
    assert torch.equal(dist.at(0).icdf(u), dist.stages[0].icdf(u))
    assert torch.allclose(dist.at(50).icdf(u), Uniform(0.2, 0.55).icdf(u))
    assert torch.allclose(dist.at(150).icdf(u), (Uniform(0.4, 0.9).icdf(u) + 0.1) / 2)
    assert torch.equal(dist.at(5000).icdf(u), dist.stages[2].icdf(u))


def test_stages_that_are_not_smooth_change_at_their_step():
    dist = Curriculum([Constant(0.0), Constant(0.75)], [0, 10], smooth=False)
    assert [draw(dist, 1, seed=0, step=step).item() for step in (0, 9, 10, 99)] == [0.0, 0.0, 0.75, 0.75]


def test_frame_beta_takes_all_but_one_grid_of_a_video_at_most():
    dist, grids = FrameBeta(0.75, 6), [1, 2, 16, 64]
    shares = dist.icdf(torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1])
    rates = torch.tensor([[dist.rate_for(share, count) for count in grids] for share in shares.tolist()])
    most = torch.tensor([(count - 1) / count for count in grids])
    assert (rates <= most).all() and (rates[-1] > 0.9 * most).sum() == 3 and (rates[:, 0] == 0).all()
    torch.testing.assert_close(shares, Beta(0.75, 6, 0.0, 1 - 2**-20).icdf(torch.arange(1000).double() / 1000))


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(Uniform(), 8, seed=0, step=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("step", range(5))
def test_a_stratified_step_covers_the_range(step):
    rates = draw(Uniform(0.0, 0.8), 8, seed=0, step=step)
    assert (rates / 0.1).floor().sort().values.tolist() == list(range(8))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(1.0),
        lambda: Uniform(0.0, 1.0),
        lambda: Uniform(0.9, 0.1),
        lambda: Choice([]),
        lambda: Choice([0.1], [1, 2]),
        lambda: Choice([0.1, 1.2]),
        lambda: Beta(0.99),
        lambda: Beta(0.5, 1.0),
        lambda: Mixture([]),
        lambda: Curriculum([]),
        lambda: Mixture([FrameBeta()]),
        lambda: FrameBeta(1.0),
        lambda: Curriculum([Uniform(), Constant(0.5)]),
        lambda: Curriculum([Uniform(), Constant(0.5)], [0, 0]),
    ],
)
def test_a_distribution_that_could_leave_the_unit_interval_is_an_error(make):
    with pytest.raises(ValueError, match=r".+: .+|outside|no rates|no components|no stages"):
        make()


def test_levels_are_few_equally_likely_and_hold_both_ends():
    drawn = torch.cat([draw(Uniform(0.1, 0.8), 4, seed=0, step=step, levels=8) for step in range(400)])
    found, counts = drawn.unique(return_counts=True)
    torch.testing.assert_close(found, torch.arange(8, dtype=torch.float64) / 10 + 0.1)
    assert counts.min() > 150
    assert set(draw(Choice([0.0, 0.5, 0.75]), 64, seed=0, step=0, levels=16).tolist()) == {0.0, 0.5, 0.75}


def test_a_micro_batch_draws_every_part_of_the_distribution_over_the_steps():
    first = torch.stack([draw(Uniform(0.0, 0.8), 8, seed=0, step=step)[0] for step in range(100)])
    assert set((first / 0.1).floor().tolist()) == set(range(8))
