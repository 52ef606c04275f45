"""Canaries: patients who do not exist, each with a direction that nobody shares.

The first part of an audit. Each canary is a Dirac canary (Nasr et al. 2023, section 5; Steinke
et al. 2023, section 6): all that it adds to a release lies along its own direction, so that
a thousand of them can be told apart in one run. A fair coin decides on each whether it takes part;
the auditor knows the coins, and whoever attacks sees only what is released.

Axes: T releases (steps of DP-SGD, or votes), M canaries, P patients who took part.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.privacy.events import Event

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Observation:
    """What one or more runs of a mechanism released, along the canaries' directions.

    Attributes:
        included_M: Which canaries took part.
        released_TM: Inner products of each release with the canaries' directions, in units of
            the bound on one patient: 1 and noise where the canary was in, else noise alone.
        drawn_TP: Which of those who took part were sampled, in the order of their places.
        counted: What the ledger holds of one run afterwards.
        claim: Epsilon of that, at the audit's delta.
    """

    included_M: Booleans
    released_TM: Floats
    drawn_TP: Booleans
    counted: tuple[Event, ...]
    claim: float

    @property
    def noise_TN(self) -> Floats:
        """What was released along directions of canaries who took no part: noise alone."""
        noise: Floats = self.released_TM[:, ~self.included_M]
        return noise

    @property
    def own_TP(self) -> Floats:
        """What was released along directions of those who took part."""
        own: Floats = self.released_TM[:, self.included_M]
        return own


def coins(canaries: int, rng: np.random.Generator) -> Booleans:
    """Toss a fair coin for each canary.

    Args:
        canaries: M, at least 2.
        rng: Source of the coins, of nothing else.

    Returns:
        (M,), true for canaries that take part.

    Raises:
        ValueError: There are fewer than two canaries.
    """
    if canaries < 2:
        raise ValueError(f"{canaries} canaries: some must be in and some out")
    tossed: Booleans = rng.random(canaries) < 0.5
    return tossed


def log_likelihood_ratio(
    released_TM: Floats, noise_multiplier: float, sample_rate: float
) -> Floats:
    """Score canaries: how much likelier what was released is if they took part than if not.

    The best test there is of the mechanism that is claimed (Neyman and Pearson), and a function
    of the inner products alone; with every patient in every step it is a line in their sum.
    Scores above zero speak for taking part. Bounds hold for scores of any kind.

    Args:
        released_TM: Inner products, in units of the bound on one patient.
        noise_multiplier: As claimed, above 0.
        sample_rate: As claimed, in (0, 1].

    Returns:
        (M,) scores.
    """
    exponents_TM = (2 * released_TM - 1) / (2 * noise_multiplier**2)
    if sample_rate < 1:
        exponents_TM = np.logaddexp(np.log1p(-sample_rate), np.log(sample_rate) + exponents_TM)
    scores: Floats = exponents_TM.sum(axis=0)
    return scores
