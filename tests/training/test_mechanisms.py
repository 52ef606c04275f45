"""What a study's rounds cost, and how much noise keeps all of them within its target."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from small_study import small_study

from fundusgen.errors import StudyError
from fundusgen.models.factory import build_model
from fundusgen.privacy.accounting import epsilon, epsilon_pld, epsilon_rdp
from fundusgen.privacy.events import Event
from fundusgen.privacy.privacy_filter import filter_epsilon, filter_order
from fundusgen.study import Study
from fundusgen.training.mechanisms import noise_for, planned_events, reply_bytes, round_event

DELTA = 1e-5
VOTES = {"rounds": 2, "candidates": 30, "appearance_share": 0}
DPSGD = {"steps_per_round": 2, "sample_rate": 0.5, "views_per_patient": 2}


def both(**changes: object) -> Study:
    stages = {"votes": VOTES, "dpsgd": DPSGD}
    return small_study(**{"prior": {}, "stages": stages, **changes})


def votes_only(**changes: object) -> Study:
    stages = {"votes": VOTES, "dpsgd": None}
    return small_study(**{"prior": {}, "stages": stages, "federation": {}, **changes})


def rows(*events: tuple[str, str, Event]) -> list[object]:
    return [
        SimpleNamespace(study_hash=study_hash, stage=stage, event=event)
        for study_hash, stage, event in events
    ]


@pytest.mark.parametrize("bound", [epsilon, epsilon_rdp, epsilon_pld])
@pytest.mark.parametrize(
    ("target", "share", "vote_rounds", "rate"),
    [(8.0, 0.25, 2, 0.5), (1.0, 0.25, 1, 0.1), (3.0, 0.9, 5, 0.05), (8.0, 0.02, 3, 1.0)],
)
def test_both_stages_together_cost_at_most_the_target(
    bound, target: float, share: float, vote_rounds: int, rate: float
) -> None:
    study = both(
        stages={
            "votes": {**VOTES, "rounds": vote_rounds},
            "dpsgd": {**DPSGD, "sample_rate": rate},
        },
        privacy={"target_epsilon": target, "target_delta": DELTA, "votes_share": share},
        federation={"rounds": 7},
    )
    votes, dpsgd = planned_events(study)
    assert (votes.kind, votes.sample_rate, votes.steps) == ("gaussian", 1.0, vote_rounds)
    assert (dpsgd.kind, dpsgd.sample_rate, dpsgd.steps) == ("subsampled_gaussian", rate, 14)
    assert bound([votes], DELTA) <= share * target
    assert bound([votes, dpsgd], DELTA) <= target
    # Nor is any of it given away: a hundredth less noise would be too little for one of them.
    less = [replace(event, noise_multiplier=0.99 * event.noise_multiplier) for event in (votes,)]
    assert max(f(less, DELTA) for f in (epsilon, epsilon_rdp, epsilon_pld)) > share * target


@pytest.mark.parametrize("bound", [epsilon, epsilon_rdp, epsilon_pld])
def test_votes_alone_may_cost_the_whole_target(bound) -> None:
    (votes,) = planned_events(votes_only())
    assert votes == Event("gaussian", noise_for(votes_only(), "votes"), 1.0, 2)
    assert bound([votes], DELTA) <= 8.0
    assert noise_for(votes_only(), "votes") < noise_for(both(), "votes")


def test_the_cost_of_votes_is_that_of_the_gaussian_mechanism_written_out() -> None:
    (votes,) = planned_events(votes_only())
    mu = math.sqrt(votes.steps) / votes.noise_multiplier

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    # Balle and Wang 2018, Theorem 8.
    at = epsilon([votes], DELTA)
    delta = below(mu / 2 - at / mu) - math.exp(at) * below(-mu / 2 - at / mu)
    assert delta == pytest.approx(DELTA, rel=1e-4)


def test_a_privacy_filter_counts_votes_by_their_divergence_at_its_order() -> None:
    votes, dpsgd = planned_events(both())
    order = filter_order(8.0, DELTA)
    divergence = order * votes.steps / (2 * votes.noise_multiplier**2)
    # Balle et al. 2020, Theorem 21.
    expected = (
        divergence + math.log1p(-1 / order) - (math.log(DELTA) + math.log(order)) / (order - 1)
    )
    counted = filter_epsilon([votes], max_epsilon=8.0, delta=DELTA)
    assert counted == pytest.approx(expected)
    assert filter_epsilon([votes, dpsgd], max_epsilon=8.0, delta=DELTA) > counted


def test_more_for_the_votes_leaves_less_for_dpsgd() -> None:
    little, much = (
        both(privacy={"target_epsilon": 8, "votes_share": share}) for share in (0.1, 0.8)
    )
    assert noise_for(little, "votes") > noise_for(much, "votes")
    assert noise_for(little, "dpsgd") < noise_for(much, "dpsgd")
    assert noise_for(small_study(), "dpsgd") < noise_for(little, "dpsgd")


def test_the_share_of_the_votes_is_no_matter_where_there_is_one_stage() -> None:
    for kind, stage in ((votes_only, "votes"), (small_study, "dpsgd")):
        one, other = (
            noise_for(kind(privacy={"target_epsilon": 8, "votes_share": share}), stage)
            for share in (0.1, 0.9)
        )
        assert one == other


def test_a_round_is_one_event_of_its_stage() -> None:
    assert round_event(both(), "votes", []) == Event("gaussian", noise_for(both(), "votes"), 1.0, 1)
    assert round_event(both(), "dpsgd", []) == Event(
        "subsampled_gaussian", noise_for(both(), "dpsgd"), 0.5, 2
    )


def test_a_stage_keeps_the_noise_that_it_began_with_and_no_other_stage_s_or_study_s() -> None:
    study = both()
    held = rows(
        ("0" * 64, "votes", Event("gaussian", 1.5, 1.0, 1)),
        (study.study_hash, "votes", Event("gaussian", 9.5, 1.0, 1)),
        (study.study_hash, "votes", Event("gaussian", 2.5, 1.0, 1)),
    )
    assert round_event(study, "votes", held).noise_multiplier == 9.5
    assert round_event(study, "dpsgd", held).noise_multiplier == noise_for(study, "dpsgd")


@pytest.mark.parametrize(("study", "stage"), [(small_study(), "votes"), (votes_only(), "dpsgd")])
def test_a_stage_that_the_study_has_not_has_no_noise(study: Study, stage) -> None:
    with pytest.raises(StudyError, match=f"no stage '{stage}'"):
        noise_for(study, stage)
    with pytest.raises(StudyError, match=f"no stage '{stage}'"):
        round_event(study, stage, [])


def test_a_reply_is_a_number_a_candidate_or_a_number_a_private_parameter() -> None:
    assert reply_bytes(both(), "votes") == 4 * 30
    parameters = sum(tensor.numel() for tensor in build_model(both()).parameters())
    assert reply_bytes(both(), "dpsgd") == 4 * parameters
    with pytest.raises(StudyError, match="no stage 'votes'"):
        reply_bytes(small_study(), "votes")
