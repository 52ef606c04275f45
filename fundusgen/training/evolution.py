"""What the server makes of votes: the next population of phantoms. Post-processing, free.

Private Evolution (Lin et al. 2024, arXiv 2305.15560, Algorithm 1; with a simulator, arXiv
2502.05505): candidates whose noisy votes stand out of the noise survive and have children, which
are the same photographs with all parameters a little changed. Every condition keeps the share of
the candidates that the study gave it: how many patients have it is neither used nor shown.

Axis letters: N candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
        shares_N: Of each candidate within its condition; those of a condition add up to 1.
        undecided: Places of the conditions in which nobody stood out of the noise; all their
            candidates have equal shares, as in the prior.
    """

    shares_N: NDArray[np.float64]
    undecided: tuple[int, ...]


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
    """Read noisy votes: who stands out of the noise, and with what share.

    Within each condition those are heard who stand out by the rule of Benjamini and Hochberg
    (1995): of them, a fifth at most is expected to be noise. Where there is nothing but noise, four
    votes of five hear nobody; where most candidates have votes, few of them are lost.

    Args:
        votes_N: Noisy votes, summed over sites.
        noise_deviation: Standard deviation of the noise in each.
        conditions_N: Conditions of the candidates.
    """
    shares_N = np.zeros(len(votes_N))
    undecided = []
    for condition in np.unique(conditions_N):
        standing = conditions_N == condition
        by_chance = norm.sf(votes_N[standing] / noise_deviation)
        stands_out = false_discovery_control(by_chance, method="bh") <= FALSE_SHARE
        heard = np.where(stands_out, votes_N[standing], 0.0).astype(np.float64)
        if heard.sum() > 0:
            shares_N[standing] = heard / heard.sum()
        else:
            shares_N[standing] = 1 / np.count_nonzero(standing)
            undecided.append(int(condition))
    return Result(shares_N, tuple(undecided))


def next_generation(study: Study, before: Generation, result: Result, vote: int) -> Generation:
    """Put up the candidates of the next vote: the best of this one, and children of all of them.

    Args:
        study: The study.
        before: The candidates of this vote.
        result: Of this vote.
        vote: Number of this vote, from 1; decides the draws.
    """
    rng = _rng(study, _CHILDREN, vote)
    lineages: list[Lineage] = []
    conditions: list[int] = []
    for condition in np.unique(before.conditions_N):
        standing = np.flatnonzero(before.conditions_N == condition)
        shares = result.shares_N[standing]
        best = standing[np.argsort(-shares, kind="stable")]
        survivors = best[: min(int(_SURVIVING * len(standing)), np.count_nonzero(shares))]
        lineages += [before.lineages[place] for place in survivors]
        lineages += children_of(before, standing, shares, len(standing) - len(survivors), rng)
        conditions += [int(condition)] * len(standing)
    return Generation(tuple(lineages), np.array(conditions, dtype=np.int64))


def children_of(
    before: Generation,
    standing: NDArray[np.int64],
    shares: NDArray[np.float64],
    count: int,
    rng: np.random.Generator,
) -> Sequence[Lineage]:
    """Draw children of candidates.

    Args:
        before: The generation.
        standing: Places of the candidates that may have children.
        shares: Of each, adding up to 1.
        count: Number of children.
        rng: Source of the draws.
    """
    # Both numbers of a child lie together, so that more children begin with the fewer.
    draws_2N = rng.random((count, 2)).T
    bounds = np.cumsum(shares) / shares.sum()
    parents = standing[np.minimum(np.searchsorted(bounds, draws_2N[0], "right"), len(shares) - 1)]
    seeds = (draws_2N[1] * 2**31).astype(np.int64)
    return [
        before.lineages[parent].child(int(seed))
        for parent, seed in zip(parents, seeds, strict=True)
    ]


def _drawn_as(condition: str, rng: np.random.Generator) -> str:
    if condition in PHANTOM_CONDITIONS:
        return condition
    return str(PHANTOM_CONDITIONS[int(rng.integers(len(PHANTOM_CONDITIONS)))])


def _rng(study: Study, purpose: int, number: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([study.seed, 0x707E5, purpose, number]))
    )
