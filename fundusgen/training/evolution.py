"""What the server makes of votes: the next population of phantoms. Post-processing, free.

Private Evolution (Lin et al. 2024, arXiv 2305.15560, Algorithm 1; with a simulator, arXiv
2502.05505): candidates whose noisy votes stand out of the noise survive and have children, which
are the same photographs with all parameters a little changed. Every condition keeps the share of
the candidates that the study gave it, whatever the number of its patients. Where conditions share
winners, those of all are weighed by their noisy votes, so what many patients have decides more
about the cameras of what few have; of their numbers, a tally tells what its noise leaves.

Axis letters: N candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, norm

from fundusgen.phantom.camera import CAMERA_STYLES
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.variation import Lineage
from fundusgen.study import Study

# Of those who stand out, the share that noise alone may have lifted there.
FALSE_SHARE = 0.2
# Of each condition's places in the next generation, those that may go to survivors.
_SURVIVING = 0.5
# Tell apart the random draws of one study.
_FIRST, _CHILDREN = 0, 1


@dataclass(frozen=True)
class Generation:
    """The candidates of one vote.

    Attributes:
        lineages: How each came about.
        conditions_N: int64 places in the study's conditions; a phantom may stand for a condition
            that has no look of its own, such as `unknown`.
    """

    lineages: tuple[Lineage, ...]
    conditions_N: NDArray[np.int64]


@dataclass(frozen=True)
class Result:
    """What a vote comes to.

    Attributes:
        heard_N: Noisy votes of each candidate that stood out of the noise, 0 of the others.
        undecided: Places of the conditions in which nobody did.
    """

    heard_N: NDArray[np.float64]
    undecided: tuple[int, ...]


@dataclass(frozen=True)
class Parents:
    """From whom the next phantoms descend.

    Attributes:
        generation: Who they are; a winner stands here for its own condition and, drawn with
            another disease, for others.
        shares_N: Of each within its condition; those of a condition add up to 1.
    """

    generation: Generation
    shares_N: NDArray[np.float64]


def first_generation(study: Study) -> Generation:
    """Draw the candidates of a study's first vote: its conditions in turn, cameras at random.

    Raises:
        StudyError: The study has no votes.
    """
    count = study.votes.candidates
    rng = _rng(study, _FIRST, 0)
    styles = tuple(CAMERA_STYLES)
    conditions_N = np.arange(count, dtype=np.int64) % len(study.conditions)
    lineages = tuple(
        Lineage(
            study.seed,
            number,
            _drawn_as(study.conditions[place], rng),
            styles[int(rng.integers(len(styles)))],
        )
        for number, place in enumerate(conditions_N)
    )
    return Generation(lineages, conditions_N)


def result_of(
    votes_N: NDArray[np.floating], noise_deviation: float, conditions_N: NDArray[np.int64]
) -> Result:
    """Read noisy votes: who stands out of the noise.

    Within each condition those are heard who stand out by the rule of Benjamini and Hochberg
    (1995): of them, a fifth at most is expected to be noise. Where there is nothing but noise, four
    votes of five hear nobody; where most candidates have votes, few of them are lost.

    Args:
        votes_N: Noisy votes, summed over sites.
        noise_deviation: Standard deviation of the noise in each.
        conditions_N: Conditions of the candidates.
    """
    heard_N = np.zeros(len(votes_N))
    undecided = []
    for condition in np.unique(conditions_N):
        standing = conditions_N == condition
        by_chance = norm.sf(votes_N[standing] / noise_deviation)
        stands_out = false_discovery_control(by_chance, method="bh") <= FALSE_SHARE
        # A vote below zero is noise, whatever the rule says.
        heard_N[standing] = np.where(stands_out, np.maximum(votes_N[standing], 0), 0)
        if not heard_N[standing].any():
            undecided.append(int(condition))
    return Result(heard_N, tuple(undecided))


def parents_of(study: Study, voted: Generation, result: Result) -> Parents:
    """Choose from whom the next phantoms descend.

    The few whom a rare condition elects are not all that its patients are like, and their
    photographs were taken by the same cameras as everyone's. So the winners of all conditions have
    a say in each, as eyes with its disease: with an effective number of n winners of its own,
    `n / (n + trusted_ancestors)` of the say is theirs, the rest is that of all. A condition
    without winners of its own takes after all, and where there are none at all, every candidate is
    as good as the others.

    Args:
        study: The study.
        voted: The candidates of a vote.
        result: Of the vote.
    """
    everyone = np.flatnonzero(result.heard_N)
    lineages: list[Lineage] = []
    conditions: list[int] = []
    shares: list[NDArray[np.float64]] = []
    for condition in np.unique(voted.conditions_N):
        own = np.flatnonzero(voted.conditions_N == condition)
        if len(everyone) == 0:
            lineages += [voted.lineages[place] for place in own]
            shares.append(np.full(len(own), 1 / len(own)))
            conditions += [int(condition)] * len(own)
            continue
        own = own[result.heard_N[own] > 0]
        of_own = result.heard_N[own] / max(result.heard_N[own].sum(), np.finfo(float).tiny)
        effective = 1 / np.square(of_own).sum() if len(own) else 0.0
        trusted = study.votes.trusted_ancestors
        say = effective / (effective + trusted) if effective else 0.0
        lineages += [voted.lineages[place] for place in own]
        shares.append(say * of_own)
        conditions += [int(condition)] * len(own)
        if say < 1:
            name = study.conditions[condition]
            lineages += [_with_disease(voted.lineages[place], name) for place in everyone]
            shares.append((1 - say) * result.heard_N[everyone] / result.heard_N[everyone].sum())
            conditions += [int(condition)] * len(everyone)
    return Parents(
        Generation(tuple(lineages), np.array(conditions, dtype=np.int64)), np.concatenate(shares)
    )


def next_generation(study: Study, voted: Generation, result: Result, vote: int) -> Generation:
    """Put up the candidates of the next vote: the best of this one, and children of all of them.

    Args:
        study: The study.
        voted: The candidates of this vote.
        result: Of this vote.
        vote: Number of this vote, from 1; decides the draws.
    """
    rng = _rng(study, _CHILDREN, vote)
    parents = parents_of(study, voted, result)
    lineages: list[Lineage] = []
    conditions: list[int] = []
    for condition in np.unique(voted.conditions_N):
        standing = np.flatnonzero(voted.conditions_N == condition)
        heard = result.heard_N[standing]
        best = standing[np.argsort(-heard, kind="stable")]
        # Where nobody was elected, all are as good as each other, and half of them stay.
        elected = np.count_nonzero(heard) or len(standing)
        survivors = best[: min(int(_SURVIVING * len(standing)), elected)]
        lineages += [voted.lineages[place] for place in survivors]
        lineages += children_of(parents, int(condition), len(standing) - len(survivors), rng)
        conditions += [int(condition)] * len(standing)
    return Generation(tuple(lineages), np.array(conditions, dtype=np.int64))


def children_of(
    parents: Parents, condition: int, count: int, rng: np.random.Generator
) -> Sequence[Lineage]:
    """Draw children of the parents of a condition.

    Args:
        parents: All of them.
        condition: Its place in the study's.
        count: Number of children.
        rng: Source of the draws.
    """
    standing = np.flatnonzero(parents.generation.conditions_N == condition)
    shares = parents.shares_N[standing]
    # Both numbers of a child lie together, so that more children begin with the fewer.
    draws_2N = rng.random((count, 2)).T
    bounds = np.cumsum(shares) / shares.sum()
    places = standing[np.minimum(np.searchsorted(bounds, draws_2N[0], "right"), len(shares) - 1)]
    seeds = (draws_2N[1] * 2**31).astype(np.int64)
    return [
        parents.generation.lineages[place].child(int(seed))
        for place, seed in zip(places, seeds, strict=True)
    ]


def _with_disease(lineage: Lineage, condition: str) -> Lineage:
    """The same photograph of an eye that has another condition, if that one has a look."""
    return replace(lineage, condition=condition) if condition in PHANTOM_CONDITIONS else lineage


def _drawn_as(condition: str, rng: np.random.Generator) -> str:
    if condition in PHANTOM_CONDITIONS:
        return condition
    return str(PHANTOM_CONDITIONS[int(rng.integers(len(PHANTOM_CONDITIONS)))])


def _rng(study: Study, purpose: int, number: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([study.seed, 0x707E5, purpose, number]))
    )
