"""What becomes of noisy votes: who survives, who has children, whom the model learns from."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from small_study import small_study

from fundusgen.phantom.camera import CAMERA_STYLES
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.variation import Lineage, phantom_of
from fundusgen.study import Study
from fundusgen.training.evolution import (
    Generation,
    Parents,
    Result,
    first_generation,
    next_generation,
    parents_of,
    result_of,
)
from fundusgen.training.population import VotedPopulation


def voted(
    candidates: int = 24,
    conditions: tuple[str, ...] = ("normal", "amd"),
    trusted_ancestors: float = 0,
) -> Study:
    votes = {"rounds": 3, "candidates": candidates, "trusted_ancestors": trusted_ancestors}
    stages = {"votes": votes, "dpsgd": None}
    return small_study(conditions=conditions, prior={}, stages=stages, federation={})


def counts(generation: Generation) -> Counter[int]:
    return Counter(generation.conditions_N.tolist())


def votes_for(generation: Generation, places: dict[int, float]) -> np.ndarray:
    votes = np.zeros(len(generation.lineages))
    for place, count in places.items():
        votes[place] = count
    return votes


def result(generation: Generation, places: dict[int, float], noise: float = 1.0) -> Result:
    return result_of(votes_for(generation, places), noise, generation.conditions_N)


@pytest.mark.parametrize("candidates", [6, 24, 25])
def test_the_first_candidates_have_the_conditions_in_turn_and_all_cameras(candidates) -> None:
    study = voted(candidates, ("normal", "amd", "other"))
    first = first_generation(study)
    assert max(counts(first).values()) - min(counts(first).values()) <= 1
    assert len(set(first.lineages)) == candidates
    assert not any(line.variations for line in first.lineages)
    for line, place in zip(first.lineages, first.conditions_N, strict=True):
        named = study.conditions[place]
        assert line.condition == named or named not in PHANTOM_CONDITIONS
        assert line.camera_style in CAMERA_STYLES
    styles = {line.camera_style for line in first_generation(voted(200)).lineages}
    assert styles == set(CAMERA_STYLES)


def test_a_condition_without_a_look_of_its_own_is_drawn_as_all_of_them() -> None:
    first = first_generation(voted(200, ("normal", "unknown")))
    drawn = {line.condition for line in first.lineages if line.condition != "normal"}
    assert len(drawn) > 5


def test_votes_that_do_not_stand_out_of_the_noise_are_not_heard() -> None:
    first = first_generation(voted())
    # Of twelve, the third stands out if noise is above it in 0.2 * 3 / 12 of all draws.
    bar = 3 * norm.isf(0.2 * 3 / 12)
    heard = result(first, {0: 30.0, 2: 10.0, 4: bar - 0.01, 6: -50.0, 1: 9.0}, noise=3.0)
    assert {int(p): heard.heard_N[p] for p in np.flatnonzero(heard.heard_N)} == {
        0: 30.0, 2: 10.0, 1: 9.0,
    }  # fmt: skip
    assert heard.undecided == ()


def test_conditions_in_which_nobody_stands_out_are_named() -> None:
    first = first_generation(voted())
    assert result(first, {1: 40.0}).undecided == (0,)
    assert result(first, {}).undecided == (0, 1)


def test_where_nobody_was_elected_at_all_every_candidate_is_as_good_as_the_others() -> None:
    study = voted()
    first = first_generation(study)
    nobody = result(first, dict.fromkeys(range(24), -5.0))
    parents = parents_of(study, first, nobody)
    assert parents.generation.lineages == tuple(
        first.lineages[place] for place in np.argsort(first.conditions_N, kind="stable")
    )
    np.testing.assert_allclose(parents.shares_N, 1 / 12)
    after = next_generation(study, first, nobody, 1)
    assert sum(line in first.lineages for line in after.lineages) == 12


def shares_of(parents: Parents, condition: int) -> dict[Lineage, float]:
    """Share of each parent of a condition; one that stands there twice has both."""
    found: dict[Lineage, float] = {}
    for line, place, share in zip(
        parents.generation.lineages, parents.generation.conditions_N, parents.shares_N, strict=True
    ):
        if place == condition:
            found[line] = found.get(line, 0.0) + float(share)
    return found


def test_the_fewer_a_condition_elects_the_more_say_have_the_winners_of_all() -> None:
    study = voted(trusted_ancestors=6)
    first = first_generation(study)
    # One phantom of one condition is elected, six of the other.
    normal, amd = (np.flatnonzero(first.conditions_N == place) for place in (0, 1))
    votes = {int(normal[0]): 60.0, **{int(place): 20.0 for place in amd[:6]}}
    parents = parents_of(study, first, result(first, votes))
    in_normal, in_amd = shares_of(parents, 0), shares_of(parents, 1)
    # 1 / (1 + 6) and 6 / (6 + 6) of the say are their own; the rest is that of all seven.
    own = first.lineages[normal[0]]
    assert in_normal[own] == pytest.approx(1 / 7 + (6 / 7) * 60 / 180)
    other = first.lineages[amd[0]]
    assert in_normal[replace(other, condition="normal")] == pytest.approx((6 / 7) * 20 / 180)
    assert in_amd[other] == pytest.approx(0.5 / 6 + 0.5 * 20 / 180)
    assert in_amd[replace(own, condition="amd")] == pytest.approx(0.5 * 60 / 180)
    assert sum(in_normal.values()) == pytest.approx(1)
    assert sum(in_amd.values()) == pytest.approx(1)


def test_a_condition_without_winners_takes_after_those_of_the_others() -> None:
    study = voted(trusted_ancestors=6)
    first = first_generation(study)
    in_amd = shares_of(parents_of(study, first, result(first, {0: 40.0, 2: 120.0})), 1)
    assert in_amd == pytest.approx(
        {replace(first.lineages[place], condition="amd"): share
         for place, share in ((0, 0.25), (2, 0.75))}
    )  # fmt: skip


def test_with_no_ancestors_to_trust_each_conditions_winners_have_all_the_say() -> None:
    study = voted(trusted_ancestors=0)
    first = first_generation(study)
    heard = result(first, {0: 30.0, 2: 10.0, 1: 9.0})
    assert shares_of(parents_of(study, first, heard), 0) == pytest.approx(
        {first.lineages[0]: 0.75, first.lineages[2]: 0.25}
    )


def test_a_disease_is_drawn_into_the_same_photograph() -> None:
    study = voted(trusted_ancestors=6, conditions=("normal", "amd", "other"))
    first = first_generation(study)
    parents = parents_of(study, first, result(first, {0: 40.0}))
    (own,) = shares_of(parents, 0)
    (with_amd,) = shares_of(parents, 1)
    # One that has no look of its own takes the winner as it is.
    assert set(shares_of(parents, 2)) == {own}
    healthy, ill = (phantom_of(line, 0.3) for line in (own, with_amd))
    assert healthy.camera == ill.camera
    assert healthy.anatomy.eye == ill.anatomy.eye


@pytest.mark.parametrize("candidates", [20, 500])
def test_noise_alone_is_heard_in_one_vote_of_five_whatever_the_number_of_candidates(
    candidates,
) -> None:
    rng = np.random.default_rng(4)
    conditions_N = np.zeros(candidates, dtype=np.int64)
    undecided = [
        bool(result_of(rng.normal(0, 7.0, candidates), 7.0, conditions_N).undecided)
        for _ in range(400)
    ]
    assert np.mean(undecided) == pytest.approx(0.8, abs=0.07)


def test_of_those_who_are_heard_a_fifth_at_most_is_noise() -> None:
    rng = np.random.default_rng(5)
    false, heard = 0, 0
    for _ in range(100):
        votes_N = rng.normal(0, 2.0, 300)
        votes_N[:60] += 6.0
        heard_N = result_of(votes_N, 2.0, np.zeros(300, dtype=np.int64)).heard_N
        false += np.count_nonzero(heard_N[60:])
        heard += np.count_nonzero(heard_N)
    # The bound is for all candidates as if noise; a fifth of them is not.
    assert 0.1 < false / heard < 0.2
    assert heard / 100 > 50


def test_how_many_patients_have_a_condition_is_no_matter() -> None:
    study = voted()
    first = first_generation(study)
    few, many = (
        shares_of(parents_of(study, first, result(first, {0: 9.0, 1: votes})), 1)
        for votes in (5.0, 5000.0)
    )
    # A condition is not larger for it among the parents, nor among the candidates.
    assert sum(few.values()) == pytest.approx(1)
    assert sum(many.values()) == pytest.approx(1)
    after = next_generation(study, first, result(first, {0: 9.0, 1: 5000.0}), 1)
    assert counts(after) == counts(first)


def test_every_condition_keeps_its_number_of_candidates_over_generations() -> None:
    study = voted(25, ("normal", "amd", "other"))
    generation = first_generation(study)
    before = counts(generation)
    rng = np.random.default_rng(5)
    for vote in range(1, 6):
        heard = result_of(rng.normal(0, 3, 25), 1.0, generation.conditions_N)
        generation = next_generation(study, generation, heard, vote)
        assert counts(generation) == before
        for line, place in zip(generation.lineages, generation.conditions_N, strict=True):
            named = study.conditions[place]
            assert line.condition == named or named not in PHANTOM_CONDITIONS


def test_those_with_most_votes_survive_and_the_others_are_replaced_by_children() -> None:
    study = voted()
    first = first_generation(study)
    heard = result(first, {0: 50.0, 4: 90.0, 8: 10.0, 3: 20.0})
    after = next_generation(study, first, heard, 1)
    old, survivors = set(first.lineages), [line for line in after.lineages if not line.variations]
    assert survivors == [first.lineages[place] for place in (4, 0, 8, 3)]
    children = [line for line in after.lineages if line.variations]
    assert len(children) == 20
    assert not old & set(children)
    parents = Counter(line.number for line in children)
    assert set(parents) <= {0, 4, 8, 3}
    assert parents[3] == 11
    assert parents[4] > parents[8]


def test_no_more_than_half_of_a_condition_survives_so_that_something_is_new() -> None:
    study = voted()
    first = first_generation(study)
    everyone = dict.fromkeys(range(24), 10.0) | {5: 30.0, 20: 25.0}
    after = next_generation(study, first, result(first, everyone), 1)
    survivors = [line.number for line in after.lineages if not line.variations]
    assert len(survivors) == 12
    assert {5, 20} <= set(survivors)


def test_children_are_varied_once_more_than_their_parents() -> None:
    study = voted()
    generation = first_generation(study)
    for vote in (1, 2):
        # Of the first condition the last, which is a child after the first vote.
        heard = result(generation, {int(np.flatnonzero(generation.conditions_N == 0)[-1]): 9.0})
        generation = next_generation(study, generation, heard, vote)
    assert {len(line.variations) for line in generation.lineages} == {0, 1, 2}


def test_the_same_votes_give_the_same_generation_and_another_seed_or_vote_another() -> None:
    study = voted()
    first = first_generation(study)
    heard = result(first, {0: 9.0, 1: 7.0})
    once, again = (next_generation(study, first, heard, 1) for _ in range(2))
    assert once.lineages == again.lineages
    np.testing.assert_array_equal(once.conditions_N, again.conditions_N)
    assert next_generation(study, first, heard, 2).lineages != once.lineages
    other = study.model_copy(update={"seed": 77})
    assert first_generation(other).lineages != first.lineages
    assert first_generation(study).lineages == first.lineages


def test_the_model_learns_from_children_of_the_winners_of_each_condition() -> None:
    study = voted()
    first = first_generation(study)
    heard = result(first, {4: 30.0, 8: 10.0, 3: 20.0})
    population = VotedPopulation(study.conditions, 32, 0.3, parents_of(study, first, heard))
    wanted = np.array([0, 1, 1, 0, 0] * 60)
    lineages = population.lineages(wanted, 7)
    assert len(lineages) == 300
    parents = Counter(line.number for line in lineages)
    assert set(parents) == {4, 8, 3}
    assert parents[3] == 120
    assert 0.6 < parents[4] / (parents[4] + parents[8]) < 0.9
    assert all(len(line.variations) == 1 for line in lineages)
    for line, place in zip(lineages, wanted, strict=True):
        assert line.condition == study.conditions[place]
    assert population.lineages(wanted, 7) == lineages
    assert population.lineages(wanted, 8) != lineages


def test_a_longer_draw_of_the_winners_children_begins_with_the_shorter() -> None:
    study = voted()
    first = first_generation(study)
    population = VotedPopulation(
        study.conditions, 32, 0.3, parents_of(study, first, result(first, {4: 30.0, 3: 20.0}))
    )
    wanted = np.zeros(50, np.int64)
    assert population.lineages(wanted, 1)[:9] == population.lineages(wanted[:9], 1)


def test_where_nobody_won_the_model_learns_from_all_of_a_condition() -> None:
    study = voted()
    first = first_generation(study)
    population = VotedPopulation(
        study.conditions, 32, 0.3, parents_of(study, first, result(first, {}))
    )
    drawn = population.lineages(np.arange(2000) % 2, 1)
    assert {line.number for line in drawn} == set(range(24))


def test_only_the_elected_survive_whoever_has_a_say() -> None:
    study = voted(trusted_ancestors=6)
    generation = first_generation(study)
    after = next_generation(study, generation, result(generation, {0: 60.0, 1: 60.0}), 1)
    kept = [line for line in after.lineages if line in generation.lineages]
    assert kept == [generation.lineages[0], generation.lineages[1]]
    assert counts(after) == counts(generation)
