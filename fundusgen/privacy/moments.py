"""Private moments: mean and variance of what is measured on the images of a site's patients.

Every patient has one statement, a vector of L2 norm 1 at most, whatever the number of their
images: the measured values and their squares, both in public units. A site adds statements up
together with the ballots of a vote (`joint`), and adds Gaussian noise to the whole once
(`votes.noisy_tally`): both are one Gaussian mechanism, of L2 sensitivity 1. What a statement says
is then paid for by ballots that are a little shorter.

Variances are asked for along each value alone, and not for pairs of values: a vector of D squares
need not be longer than a few sqrt(D), where one of all products would be longer than D, and the
noise in each entry grows with the length that is allowed.

Axis letters: M images of one patient, D values, N candidates of the vote.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import PrivacyError

# Lengths of the vector of values, and of that of their squares less one, which together fill a
# statement: it is cut where both are longer, or one of them by sqrt(2). A patient like the average
# of what the units were taken from has about sqrt(D) and sqrt(2 D): 5 and 7 at 24 values. Twice and
# four times as much leaves most of those as they are who differ.
VALUES_BOUND, SQUARES_BOUND = 12.0, 30.0
# Below, a variance is taken for noise.
_LEAST_VARIANCE = 0.05


@dataclass(frozen=True, eq=False)
class Moments:
    """What noisy statements come to.

    Attributes:
        mean_D: Means, in public units.
        variance_D: Variances, in their squares; above zero.
        mean_deviation: Standard deviation of the noise in each mean.
        variance_deviation: Standard deviation of the noise in each mean square.
    """

    mean_D: NDArray[np.float64]
    variance_D: NDArray[np.float64]
    mean_deviation: float
    variance_deviation: float


def statement(values_MD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make the statement of one patient.

    Guarantee: a function of this patient's values alone, and of L2 norm 1 at most: those of each
        image are cut to that length, and their mean is no longer than the longest.
    Edge cases: a patient without images states zeros. An image with a value that is not finite,
        or too large to be squared, counts as one of zeros.

    Args:
        values_MD: (M, D) values of each image, in public units.

    Returns:
        (2 D,) float64.
    """
    values_MD = np.asarray(values_MD, dtype=np.float64)
    images, count = values_MD.shape
    if images == 0:
        return np.zeros(2 * count)
    with np.errstate(over="ignore", invalid="ignore"):
        squares_MD = values_MD**2 - 1
        said_MS = np.concatenate([values_MD / VALUES_BOUND, squares_MD / SQUARES_BOUND], axis=1)
        said_MS /= math.sqrt(2)
        length_M = np.sqrt(np.sum(said_MS**2, axis=1))
    said_MS[~np.isfinite(length_M)] = 0
    length_M[~np.isfinite(length_M)] = 0
    mean_S: NDArray[np.float64] = (said_MS / np.maximum(1.0, length_M)[:, None]).mean(axis=0)
    return mean_S


def joint(
    ballot_N: NDArray[np.float64], statement_S: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """Put a patient's ballot and statement into one vector.

    Guarantee: of L2 norm 1 at most where both are; of the square of that length, the statement
        has at most `share`.
    Edge cases: a share of 0 leaves a ballot and zeros; 1 is refused, as votes would be noise.

    Args:
        ballot_N: From `votes.ballot`.
        statement_S: From `statement`.
        share: From 0 to less than 1.

    Returns:
        (N + S,) float64: the ballot, then the statement.

    Raises:
        PrivacyError: The share is out of range.
    """
    if not 0 <= share < 1:
        raise PrivacyError(
            f"a share of {share} of a ballot was asked for", expected="0, or more and below 1"
        )
    return np.concatenate([math.sqrt(1 - share) * ballot_N, math.sqrt(share) * statement_S])


def moments(total_S: NDArray[np.float64], patients: int, share: float, deviation: float) -> Moments:
    """Read the sum of noisy statements: post-processing.

    Whose statements were cut is not known, so means and variances of what is far from the units'
    own come out too small; and where more patients are declared than there are, both come out
    nearer to the units' own, by the ratio.

    Args:
        total_S: (2 D,) sum of all sites' noisy statements, as `joint` scaled them.
        patients: Declared number of all their patients, which is public.
        share: As given to `joint`, above 0.
        deviation: Standard deviation of the noise in each entry of the sum.
    """
    unit = math.sqrt(share / 2) * patients
    values_D, squares_D = np.split(np.asarray(total_S, dtype=np.float64) / unit, 2)
    mean_D = values_D * VALUES_BOUND
    square_D = squares_D * SQUARES_BOUND + 1
    return Moments(
        mean_D,
        np.maximum(square_D - mean_D**2, _LEAST_VARIANCE),
        VALUES_BOUND * deviation / unit,
        SQUARES_BOUND * deviation / unit,
    )
