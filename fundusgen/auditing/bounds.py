"""Lower bounds on epsilon from how well canaries that took part are told from those that did not.

Each bound takes the scores of canaries and is at most the true epsilon with the stated confidence.
Whether a canary's score is independent of the others' is an assumption here, true of Dirac canaries
under noise that is independent in each coordinate (which `checks` tests); `one_run` does without.

Sources: Jagielski, Ullman & Oprea 2020 and Nasr et al. 2021 (Clopper-Pearson), Nasr et al. 2023
(arXiv 2302.07956; Gaussian DP), Andrew et al. 2023 (arXiv 2302.03098; Gaussian scores), Dong,
Roth & Su 2022 (equation 6, corollary 2.13).

I canaries that took part, O canaries that did not.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import nctdtrinc

from fundusgen.auditing.canaries import Booleans, Floats, log_likelihood_ratio
from fundusgen.auditing.trade_offs import GaussianFamily, TradeOff
from fundusgen.privacy.gaussian_bounds import gaussian_epsilon

# Shares of the claimed noise that tests of sampled steps are made for, and of the probability of
# error that each is given: noise that is missing is looked for at little cost where none is.
_TESTS = ((1.0, 0.8), (0.5, 0.1), (0.25, 0.1))
_LARGEST_T = 1000.0


@dataclass(frozen=True)
class Rates:
    """How often a test errs at most, with confidence in both at once.

    Attributes:
        false_positives: Upper bound on the probability to suspect who took no part.
        false_negatives: Upper bound on the probability to miss who took part.
    """

    false_positives: float
    false_negatives: float

    def contradict(self, trade_off: TradeOff) -> bool:
        """Whether no test of a mechanism with this trade-off errs so rarely."""
        return self.false_positives < trade_off.least_false_positives(1 - self.false_negatives)


def clopper_pearson_upper(hits: int, trials: int, significance: float) -> float:
    """Give the upper end of the exact one-sided interval for a probability.

    Args:
        hits: How often it happened, 0 to trials.
        trials: Independent trials.
        significance: Probability with which the true one may be above, in (0, 1).

    Returns:
        The bound; 1 where it always happened, or was never tried.

    Source: Clopper & Pearson 1934.
    """
    if hits >= trials:
        return 1.0
    return float(stats.beta.ppf(1 - significance, hits + 1, trials - hits))


def rates_at(in_I: Floats, out_O: Floats, threshold: float, confidence: float) -> Rates:
    """Bound the errors of suspecting everyone whose score is above a threshold.

    Args:
        in_I: Scores of canaries that took part.
        out_O: Scores of those that did not.
        threshold: Chosen without these scores.
        confidence: That both bounds hold, in (0, 1).
    """
    each = (1 - confidence) / 2
    return Rates(
        clopper_pearson_upper(int((out_O > threshold).sum()), len(out_O), each),
        clopper_pearson_upper(int((in_I <= threshold).sum()), len(in_I), each),
    )


def epsilon_of_rates(rates: Rates, delta: float) -> float:
    """Give the least epsilon of any (epsilon, delta)-DP mechanism that can be tested so well.

    Free of any assumption on the mechanism. Of no more use than its data: from n canaries it never
    exceeds about log(n / 4).

    Args:
        rates: Of a test.
        delta: In [0, 1).

    Source: Kairouz, Oh & Viswanath 2015, theorem 2.1.
    """
    best = 0.0
    for one, other in (
        (rates.false_positives, rates.false_negatives),
        (rates.false_negatives, rates.false_positives),
    ):
        if 1 - other - delta > one > 0:
            best = max(best, math.log((1 - other - delta) / one))
    return best


def clopper_pearson_bound(
    scores_M: Floats, included_M: Booleans, delta: float, confidence: float
) -> float:
    """Bound epsilon by the errors of the best threshold.

    The threshold is chosen on every other canary, and its errors are counted on the rest.

    Args:
        scores_M: Larger for those who took part.
        included_M: Who took part, by fair coins.
        delta: In [0, 1).
        confidence: That epsilon is no smaller, in (0, 1).
    """
    in_I, out_O = scores_M[included_M], scores_M[~included_M]
    chosen_in, chosen_out = in_I[::2], out_O[::2]
    candidates = np.unique(np.concatenate([chosen_in, chosen_out]))
    if not len(candidates):
        return 0.0
    worth = [
        epsilon_of_rates(rates_at(chosen_in, chosen_out, threshold, confidence), delta)
        for threshold in candidates
    ]
    threshold = float(candidates[int(np.argmax(worth))])
    return epsilon_of_rates(rates_at(in_I[1::2], out_O[1::2], threshold, confidence), delta)


def gaussian_bound(
    released_TM: Floats,
    included_M: Booleans,
    family: GaussianFamily,
    *,
    claimed_noise: float,
    delta: float,
    confidence: float,
) -> float:
    """Bound epsilon by the errors of a likelihood-ratio test, for a mechanism of the claimed kind.

    Assumes that the mechanism is a Gaussian one of this family, with some noise; with every
    patient in every step that is Gaussian DP, and the bound that of Nasr et al. 2023. Assumes
    nothing of how much noise that is. Where steps are sampled, the best test depends on it: then
    three are made, of which any may contradict, and which share the probability of error.

    Args:
        released_TM: Inner products with the canaries' directions, in units of the bound.
        included_M: Who took part.
        family: Sample rate and steps, as claimed.
        claimed_noise: Noise multiplier, as claimed: the test's, and where the search begins.
        delta: In (0, 1).
        confidence: That epsilon is no smaller, in (0, 1).
    """
    # With every patient, scores are lines in one sum, and zero is at half the steps for all noise.
    tests = ((1.0, 1.0),) if family.sample_rate == 1 else _TESTS
    rates = []
    for fewer, share in tests:
        scores_M = log_likelihood_ratio(released_TM, fewer * claimed_noise, family.sample_rate)
        level = 1 - share * (1 - confidence)
        rates.append(rates_at(scores_M[included_M], scores_M[~included_M], 0.0, level))
    noise = family.least_noise_contradicted(
        claimed_noise, lambda trade_off: any(rate.contradict(trade_off) for rate in rates)
    )
    return 0.0 if noise is None else family.epsilon(noise, delta)


def gaussian_scores_bound(
    sums_M: Floats, included_M: Booleans, delta: float, confidence: float
) -> float:
    """Bound epsilon by the distance of two groups of Gaussian scores.

    Assumes that sums are independent and Gaussian with one variance, whoever takes part, as those
    of inner products with Dirac canaries are where every patient is in every step. Then their
    distance in standard deviations, mu, makes it no easier to tell a patient's presence than the
    mechanism does, and Student's statistic has a non-central t distribution, by which mu is
    bounded exactly.

    Args:
        sums_M: Inner products with the canaries' directions, summed over releases.
        included_M: Who took part.
        delta: In (0, 1).
        confidence: That epsilon is no smaller, in (0, 1).

    Returns:
        The bound; 0 where fewer than two canaries were in or out.

    Source: Andrew et al. 2023, whose estimate (section 3) this puts a confidence to.
    """
    in_I, out_O = sums_M[included_M], sums_M[~included_M]
    if min(len(in_I), len(out_O)) < 2:
        return 0.0
    freedom = len(in_I) + len(out_O) - 2
    scale = math.sqrt(1 / len(in_I) + 1 / len(out_O))
    within = ((in_I - in_I.mean()) ** 2).sum() + ((out_O - out_O.mean()) ** 2).sum()
    if within == 0:
        # Noise of one value in all coordinates hides nothing.
        return math.inf if in_I.mean() > out_O.mean() else 0.0
    t = (in_I.mean() - out_O.mean()) / (math.sqrt(within / freedom) * scale)
    mu = _least_noncentrality(float(t), freedom, confidence) * scale
    return gaussian_epsilon(mu, delta) * (1 - 1e-8) if mu > 0 else 0.0


def _least_noncentrality(t: float, freedom: int, confidence: float) -> float:
    """The non-centrality with which a statistic of t or more is just as improbable."""
    # Far out, the search never ends; a smaller statistic gives a smaller, so valid, bound.
    found = float(nctdtrinc(freedom, confidence, min(t, _LARGEST_T))) if t > 0 else 0.0
    return found if math.isfinite(found) else 0.0
