"""Lower bounds on epsilon from guesses about many canaries in one run.

Both papers rest on one thing alone: that fair coins decided, independently, which canaries took
part. Nothing is assumed of how scores depend on each other, so that one run of the mechanism is
enough whatever its noise is. The price is a looser bound.

Sources: Steinke, Nasr & Jagielski 2023, "Privacy auditing with one (1) training run" (arXiv
2305.08846, theorem 5.2 and appendix D); Mahloujifar, Melis & Chaudhuri 2024, "Auditing
f-differential privacy in one run" (arXiv 2410.22235).
"""

import numpy as np
from scipy import stats
from scipy.special import expit

from fundusgen.auditing.canaries import Booleans, Floats
from fundusgen.auditing.trade_offs import GaussianFamily, TradeOff

_LARGEST_EPSILON = 64.0
_TOLERANCE = 1e-6


def correct_guesses(scores_M: Floats, included_M: Booleans, guesses: int) -> int:
    """Guess that the highest scores took part and the lowest did not, and count what is right.

    Args:
        scores_M: Larger for those who took part.
        included_M: Who took part.
        guesses: How many, half on either side, 0 to M; chosen without the scores.
    """
    order = np.argsort(scores_M, kind="stable")
    low, high = order[: guesses // 2], order[len(order) - (guesses - guesses // 2) :]
    return int((~included_M[low]).sum() + included_M[high].sum())


def one_run_p_value(
    *, canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """Bound the probability of so many right guesses about any (epsilon, delta)-DP mechanism.

    Args:
        canaries: M, each in by a fair coin.
        guesses: On how many of them something was said.
        correct: How many guesses were right, at most `guesses`.
        epsilon: Of the hypothesis, at least 0.
        delta: Of the hypothesis, in [0, 1].

    Returns:
        An upper bound on the probability, at most 1.

    Raises:
        ValueError: There are more right guesses than guesses, or more guesses than canaries.

    Source: Steinke et al. 2023, theorem 5.2; their code in appendix D.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} right of {guesses} guesses about {canaries} canaries")
    if correct == 0:
        return 1.0
    right = float(expit(epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, right))
    # Mass of delta makes up for up to i wrong guesses, at the price of i.
    fewer = np.arange(1, correct + 1)
    below = stats.binom.sf(correct - fewer - 1, guesses, right) - beta
    alpha = max(0.0, float((below / fewer).max()))
    return min(1.0, beta + 2 * canaries * delta * alpha)


def one_run_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """Bound epsilon from the number of right guesses, for any mechanism at all.

    Args:
        canaries: M.
        guesses: How many were made.
        correct: How many were right.
        delta: In [0, 1].
        confidence: That epsilon is no smaller, in (0, 1).

    Returns:
        The largest epsilon that is contradicted, to 1e-6; 0 where none is.

    Raises:
        ValueError: The numbers do not fit each other.
    """

    def contradicted(epsilon: float) -> bool:
        found = one_run_p_value(
            canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
        )
        return found < 1 - confidence

    if not contradicted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        if contradicted(middle):
            low = middle
        else:
            high = middle
    return low


def contradicts_f_dp(
    trade_off: TradeOff, *, canaries: int, guesses: int, correct: int, significance: float
) -> bool:
    """Whether so many right guesses about a mechanism with this trade-off are improbable.

    Beginning with the most right guesses, the trade-off bounds how fast the probability of one
    fewer must grow; if that of all numbers would exceed one, the hypothesis is wrong.

    Args:
        trade_off: Of the hypothesis, symmetric.
        canaries: M, each in by a fair coin.
        guesses: On how many of them something was said.
        correct: How many guesses were right.
        significance: Probability of this many or more right guesses that is improbable.

    Raises:
        ValueError: The numbers do not fit each other.

    Source: Mahloujifar et al. 2024, algorithm 3 with abstentions, for two guesses.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} right of {guesses} guesses about {canaries} canaries")
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for number in range(correct - 1, -1, -1):
        grown = max(wrong, trade_off.least_false_positives(right))
        if grown == wrong:
            # Neither will ever change again.
            break
        right = min(1.0, right + number / (guesses - number) * (grown - wrong))
        wrong = grown
    return right + wrong > guesses / canaries


def f_dp_bound(
    family: GaussianFamily,
    *,
    claimed_noise: float,
    canaries: int,
    guesses: int,
    correct: int,
    delta: float,
    confidence: float,
) -> float:
    """Bound epsilon from the number of right guesses, for a mechanism of the claimed kind.

    Assumes a Gaussian mechanism of this family with some noise, and nothing of how scores depend
    on each other.

    Args:
        family: Sample rate and steps, as claimed.
        claimed_noise: Noise multiplier from which the search begins.
        canaries: M.
        guesses: How many were made.
        correct: How many were right.
        delta: In (0, 1).
        confidence: That epsilon is no smaller, in (0, 1).
    """
    noise = family.least_noise_contradicted(
        claimed_noise,
        lambda trade_off: contradicts_f_dp(
            trade_off,
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            significance=1 - confidence,
        ),
    )
    return 0.0 if noise is None else family.epsilon(noise, delta)
