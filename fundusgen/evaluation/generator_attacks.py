"""Attacks on membership that see generated images only.

Whoever has the generator, or enough of its images, can make them. Each gives photographs a score,
higher for a likelier member, from features of any extractor; `membership` judges the scores. What
an extractor does not see, these attacks do not find.

N images that are scored, M generated ones, R reference ones, D features, K axes.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from fundusgen.evaluation.frechet import PrincipalAxes
from fundusgen.evaluation.membership import Attack, OverImages, attack
from fundusgen.evaluation.patient_features import (
    PatientFeatures,
    check_finite,
    distance_blocks,
    nearest,
)
from fundusgen.evaluation.resampling import REPLICATES, Floats

# Axes of a density, and width of its kernels over that of Scott's rule. A good density would have
# fewer axes and wider kernels, but what is looked for is narrow: of blurred copies of 1,070 real
# patients, 32 axes find more than 16, 8 or 4, and 0.5 more than 1; of phantoms, none finds any.
DENSITY_AXES = 32
_NARROW = 0.5
# Of the variance along an axis, added to that of a Gaussian: a generator that has collapsed has
# directions without any.
_RIDGE = 1e-3

Density = Literal["kernel", "gaussian"]


def generator_attacks(
    generated_MD: NDArray[np.floating],
    member: PatientFeatures,
    non_member: PatientFeatures,
    rng: np.random.Generator,
    *,
    reference_RD: NDArray[np.floating] | None = None,
    over_images: OverImages = "max",
    replicates: int = REPLICATES,
) -> tuple[Attack, ...]:
    """Make all attacks of this module.

    Args:
        generated_MD: Features of generated images.
        member: Photographs that the generator was trained on.
        non_member: Photographs of other patients, divided from the members at random.
        rng: Resamples patients, and divides the non-members.
        reference_RD: Features of images that the attacker knows besides, such as phantoms or what
            the public prior draws; none of them of a patient who is scored. Where None, a random
            half of the non-members is given away, and the attacks that calibrate are judged by
            the other half.
        over_images: See `fundusgen.evaluation.membership.attack`.
        replicates: Of the bootstrap.

    Returns:
        One of `monte_carlo_scores`, of `distance_scores` without and with calibration, and of
        `density_ratio_scores` with either density.

    Raises:
        ValueError: There are too few patients, or features do not fit.
    """
    judged = non_member
    if reference_RD is None:
        given_away, judged = non_member.split(rng)
        reference_RD = given_away.features_ND

    def judge(name: str, scores_N: Floats, others: PatientFeatures) -> Attack:
        of_members_N, of_others_M = np.split(scores_N, [len(member)])
        return attack(
            name,
            of_members_N,
            member.patients_N,
            of_others_M,
            others.patients_N,
            rng,
            over_images=over_images,
            replicates=replicates,
        )

    everybody = np.concatenate([member.features_ND, non_member.features_ND])
    scored = np.concatenate([member.features_ND, judged.features_ND])
    return (
        judge("monte-carlo", monte_carlo_scores(everybody, generated_MD), non_member),
        judge("distance", distance_scores(everybody, generated_MD), non_member),
        judge("calibrated-distance", distance_scores(scored, generated_MD, reference_RD), judged),
        judge("density-ratio", density_ratio_scores(scored, generated_MD, reference_RD), judged),
        judge(
            "gaussian-ratio",
            density_ratio_scores(scored, generated_MD, reference_RD, density="gaussian"),
            judged,
        ),
    )


def monte_carlo_scores(x_ND: NDArray[np.floating], generated_MD: NDArray[np.floating]) -> Floats:
    """Score images by the share of generated ones that lie around them.

    Args:
        x_ND: All images that are to be compared, members and others: the radius depends on them.
        generated_MD: Generated images.

    Returns:
        (N,), 0 to 1, with many ties: at least half of the images have few or none around them.

    Raises:
        ValueError: Features do not fit.

    Source: Hilprecht et al. 2019, the Monte Carlo estimate with the radius of its median
        heuristic (equation 4): the median distance to the nearest generated image.
    """
    _check(x_ND, generated_MD)
    radius = np.median(nearest(x_ND, generated_MD)[0])
    scores_N = np.empty(len(x_ND), np.float64)
    for rows, distances_NM in distance_blocks(x_ND, generated_MD):
        scores_N[rows] = (distances_NM <= radius).mean(axis=1)
    return scores_N


def distance_scores(
    x_ND: NDArray[np.floating],
    generated_MD: NDArray[np.floating],
    reference_RD: NDArray[np.floating] | None = None,
) -> Floats:
    """Score images by how near the nearest generated one is.

    Args:
        x_ND: Images to score.
        generated_MD: Generated images.
        reference_RD: Images that show how near an image would be without having been a member:
            the paper's are those of a generator that has seen other data. None of the images that
            are scored.

    Returns:
        (N,), the negative distance; with a reference, that to its nearest image is added, so that
        an image in a crowd is not taken for a member.

    Raises:
        ValueError: Features do not fit.

    Source: Chen et al. 2020, "GAN-Leaks", full black-box attack and attack calibration.
    """
    _check(x_ND, generated_MD)
    scores_N: Floats = -nearest(x_ND, generated_MD)[0]
    if reference_RD is not None:
        _check(x_ND, reference_RD)
        scores_N += nearest(x_ND, reference_RD)[0]
    return scores_N


def density_ratio_scores(
    x_ND: NDArray[np.floating],
    generated_MD: NDArray[np.floating],
    reference_RD: NDArray[np.floating],
    *,
    density: Density = "kernel",
    axes: int = DENSITY_AXES,
) -> Floats:
    """Score images by how much likelier the generator makes them than the world does.

    Args:
        x_ND: Images to score.
        generated_MD: Generated images, at least two.
        reference_RD: Real images, or others like them, at least two; none of the images that are
            scored.
        density: A Gaussian kernel around each image, of one width for both sets; or one Gaussian of
            a set's mean and covariance.
        axes: Most principal axes of generated and reference images together that densities are
            taken along, each with unit variance.

    Returns:
        (N,), the logarithm of p_G(x) / p_R(x).

    Raises:
        ValueError: Features do not fit.

    Source: van Breugel et al. 2023, "DOMIAS", equation 2; the kernel is that of the paper's
        simpler variant.
    """
    _check(x_ND, generated_MD)
    _check(x_ND, reference_RD)
    known_ND = np.concatenate([generated_MD, reference_RD])
    main = PrincipalAxes.of(known_ND, axes)
    spread_K = main.of_features(known_ND).std(axis=0)
    spread_K = np.where(spread_K > 0, spread_K, 1)
    x, generated, reference = (
        main.of_features(features) / spread_K for features in (x_ND, generated_MD, reference_RD)
    )
    if density == "gaussian":
        return _gaussian_log_density(x, generated) - _gaussian_log_density(x, reference)
    # Scott 1992, for the smaller set.
    width = _NARROW * min(len(generated), len(reference)) ** (-1 / (x.shape[1] + 4))
    return _kernel_log_density(x, generated, width) - _kernel_log_density(x, reference, width)


def _kernel_log_density(x_NK: Floats, centres_MK: Floats, width: float) -> Floats:
    """Up to a constant of width and axes, which a ratio of two does not have."""
    densities_N = np.empty(len(x_NK), np.float64)
    for rows, distances_NM in distance_blocks(x_NK, centres_MK):
        exponents_NM = -(distances_NM**2) / (2 * width**2)
        densities_N[rows] = logsumexp(exponents_NM, axis=1) - np.log(len(centres_MK))
    return densities_N


def _gaussian_log_density(x_NK: Floats, fitted_MK: Floats) -> Floats:
    """Up to a constant of the axes."""
    covariance_KK = np.atleast_2d(np.cov(fitted_MK, rowvar=False))
    covariance_KK = covariance_KK + _RIDGE * np.eye(len(covariance_KK))
    root_KK = np.linalg.cholesky(covariance_KK)
    standard_KN = np.linalg.solve(root_KK, (x_NK - fitted_MK.mean(axis=0)).T)
    half_log_determinant = np.log(np.diagonal(root_KK)).sum()
    densities_N: Floats = -(standard_KN**2).sum(axis=0) / 2 - half_log_determinant
    return densities_N


def _check(x_ND: NDArray[np.floating], y_MD: NDArray[np.floating]) -> None:
    check_finite(x_ND)
    check_finite(y_MD)
