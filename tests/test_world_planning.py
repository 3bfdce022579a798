"""Planning: what the three searches find, and what they keep to."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from teamvla.models.world.planning import Planner, PlannerConfig, total_return

H, A = 15, 2
GOAL = torch.stack([torch.linspace(-0.6, 0.6, H), torch.linspace(0.5, -0.3, H)], -1)


def planner(**settings) -> Planner:
    return Planner(PlannerConfig(**settings), torch.zeros(A), torch.full((A,), 0.5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def near_goal(candidates: torch.Tensor) -> torch.Tensor:
    return -(candidates - GOAL).square().sum((1, 2))


class Watch:
    """A score that keeps the first candidates that it was asked about."""

    def __init__(self) -> None:
        self.first: torch.Tensor | None = None

    def __call__(self, candidates: torch.Tensor) -> torch.Tensor:
        self.first = candidates if self.first is None else self.first
        return near_goal(candidates)


@pytest.mark.parametrize("kind", ["cem", "mppi", "shooting"])
def test_every_search_comes_nearer_than_where_it_began(kind):
    plan = planner(type=kind).plan(near_goal, seeded())
    assert near_goal(plan[None]) > 0.8 * near_goal(torch.zeros(1, H, A))


def test_cem_beats_shooting_at_equal_samples_from_every_start():
    for seed in range(20):
        found = {
            kind: near_goal(planner(type=kind).plan(near_goal, seeded(seed))[None])
            for kind in ("cem", "shooting")
        }
        assert found["cem"] > found["shooting"]


@pytest.mark.parametrize("kind", ["cem", "mppi", "shooting"])
def test_as_many_candidates_are_tried_as_is_said(kind):
    counts: list[int] = []

    def score(candidates: torch.Tensor) -> torch.Tensor:
        counts.append(len(candidates))
        return near_goal(candidates)

    planner(type=kind, samples=120, iterations=4).plan(score, seeded())
    assert sum(counts) == 120


@pytest.mark.parametrize("kind", ["cem", "mppi", "shooting"])
def test_a_plan_stays_within_the_range_of_the_data(kind):
    plan = planner(type=kind).plan(lambda some: some.sum((1, 2)), seeded())
    assert plan.abs().max() <= 1
    assert plan.mean() > 0.2


@pytest.mark.parametrize("kind", ["cem", "mppi", "shooting"])
def test_the_same_generator_gives_the_same_plan(kind):
    one, same, other = (planner(type=kind).plan(near_goal, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_next_search_begins_one_step_on():
    searching, watch = planner(), Watch()
    last = searching.plan(near_goal, seeded())
    searching.plan(watch, seeded())
    assert watch.first is not None
    torch.testing.assert_close(watch.first[0, :-1], last[1:])
    torch.testing.assert_close(watch.first[0, -1], torch.zeros(A))


@pytest.mark.parametrize("forget", [lambda one: one.reset(), None])
def test_a_search_begins_afresh_after_a_reset_or_without_a_warm_start(forget):
    searching, watch = planner(warm_start=forget is not None), Watch()
    searching.plan(near_goal, seeded())
    if forget is not None:
        forget(searching)
    searching.plan(watch, seeded())
    assert watch.first is not None
    assert torch.equal(watch.first[0], torch.zeros(H, A))


def test_candidates_come_from_the_commands_in_the_data():
    config = PlannerConfig(type="shooting", samples=4000)
    watch, mean, std = Watch(), torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.2])
    Planner(config, mean, std).plan(watch, seeded())
    assert watch.first is not None
    torch.testing.assert_close(watch.first.mean((0, 1)), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(watch.first.std((0, 1)), std, atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["cem", "mppi", "shooting"])
def test_what_the_return_does_not_care_about_stays_near_the_data(kind):
    mean, std = torch.tensor([0.3, -0.2]), torch.full((A,), 0.3)

    def off(prior: float) -> float:
        config = PlannerConfig(type=kind, prior=prior)
        plan = Planner(config, mean, std).plan(lambda some: some[..., 0].sum(1), seeded())
        return float((plan[:, 1] - mean[1]).abs().mean())

    assert off(0.3) < 0.75 * off(0.0)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_noise_is_as_smooth_as_is_said(correlation):
    watch = Watch()
    settings = {"type": "shooting", "samples": 4000, "correlation": correlation}
    config = PlannerConfig(**settings)
    Planner(config, torch.zeros(A), torch.full((A,), 0.1)).plan(watch, seeded())
    assert watch.first is not None
    pairs = torch.stack([watch.first[:, 7, 0], watch.first[:, 8, 0]])
    assert float(torch.corrcoef(pairs)[0, 1]) == pytest.approx(correlation, abs=0.05)


def test_nothing_is_earned_behind_an_end():
    config = PlannerConfig(discount=0.5)
    reward, goes_on = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    assert total_return(reward, goes_on, config).tolist() == [1.5]


def test_a_doubtful_end_counts_for_as_much_as_it_is_likely():
    config = PlannerConfig(discount=1.0)
    reward, goes_on = torch.ones(1, 3), torch.full((1, 3), 0.5)
    assert total_return(reward, goes_on, config).tolist() == [1.75]


def test_the_last_reward_is_held_behind_an_end_where_that_is_wanted():
    config = PlannerConfig(discount=1.0, after_end="hold")
    reward, goes_on = torch.tensor([[0.2, 0.7, 0.1]]), torch.tensor([[1.0, 0.0, 1.0]])
    assert total_return(reward, goes_on, config).tolist() == pytest.approx([1.6])


def test_samples_that_leave_rounds_empty_are_refused():
    with pytest.raises(ValidationError, match="at least 8, two for each iteration"):
        PlannerConfig(samples=7, iterations=4)
