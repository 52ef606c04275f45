"""Robust fit of a circle, or of an upright ellipse, to points on the edge of a field of view.

Used by `framing` only. Edge points come with two kinds of errors: shadows and cuts put points
inside the true outline, notches and reflections put some outside. So candidates are drawn from
few points each (Fischler and Bolles 1981), scored by the points they pass near, less the points
they leave outside, and the best is refined on its inliers.

An ellipse is considered because some archives stretched their frames to a square; upright,
because that is the only shape that such a stretching gives.

Axis letters: N points, S candidates, M points a candidate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CANDIDATES = 300
SCORED_POINTS = 250
REFINEMENTS = 4
# Ratio of the axes: 3:2 frames squeezed to a square give 1.5; beyond this it is no stretching.
STRETCH_RANGE = (0.6, 1.7)
# An ellipse always fits a little better than a circle; it must earn its fourth parameter.
ELLIPSE_ADVANTAGE = 1.15


@dataclass(frozen=True)
class Outline:
    """An upright ellipse; a circle if `radius_x` and `radius_y` are equal.

    Attributes:
        center_x: In pixels from the left edge of the image.
        center_y: In pixels from the top edge.
        radius_x: Half the width, in pixels.
        radius_y: Half the height, in pixels.
        support: Share of the edge points that lie on it, less the share outside of it.
    """

    center_x: float
    center_y: float
    radius_x: float
    radius_y: float
    support: float


def fit_outline(points_N2: Array, radius_limits: tuple[float, float]) -> Outline | None:
    """Fit the outline that most edge points lie on and hardly any lies outside of.

    The same points always give the same outline: candidates are drawn from a fixed sequence.

    Args:
        points_N2: Edge points (x, y) in pixels, in any order.
        radius_limits: Smallest and largest half-width that is possible, in pixels.

    Returns:
        The outline, or None if there are fewer than 12 points or no candidate is possible.
    """
    if len(points_N2) < 12:
        return None
    circle = _best(points_N2, radius_limits, ellipse=False)
    if circle is not None and circle.support * ELLIPSE_ADVANTAGE >= 1:
        return circle
    ellipse = _best(points_N2, radius_limits, ellipse=True)
    if circle is None or ellipse is None:
        return circle or ellipse
    return ellipse if ellipse.support > ELLIPSE_ADVANTAGE * circle.support else circle


def _best(points_N2: Array, radius_limits: tuple[float, float], *, ellipse: bool) -> Outline | None:
    # Around the middle and in units of the spread, the normal equations are well conditioned.
    middle = points_N2.mean(axis=0)
    scale = float(points_N2.std()) or 1.0
    unit_N2 = (points_N2 - middle) / scale
    limits = (radius_limits[0] / scale, radius_limits[1] / scale)
    # One pixel of the working image, or a little more where edges of large fields are soft.
    tolerance = 1.2 / scale
    parameters_S4 = _candidates(unit_N2, ellipse=ellipse)
    parameters_S4 = parameters_S4[_possible(parameters_S4, limits)]
    if not len(parameters_S4):
        return None
    # Every few points tell the candidates apart; the refinement below uses all.
    thinned_N2 = unit_N2[:: max(1, len(unit_N2) // SCORED_POINTS)]
    scores_S = _scores(parameters_S4, thinned_N2, tolerance)
    best_4 = parameters_S4[scores_S.argmax()]
    best_score = float(_scores(best_4[None], unit_N2, tolerance)[0])
    for _ in range(REFINEMENTS):
        near_N = np.abs(_residuals(best_4[None], unit_N2)[0]) < 1.5 * tolerance
        if near_N.sum() < 6:
            break
        refined_14 = _solve(unit_N2[None, near_N], ellipse=ellipse)
        if not _possible(refined_14, limits)[0]:
            break
        score = float(_scores(refined_14, unit_N2, tolerance)[0])
        if score < best_score:
            break
        best_4, best_score = refined_14[0], score
    x, y, radius_x, radius_y = (float(value) for value in best_4 * scale)
    return Outline(x + middle[0], y + middle[1], radius_x, radius_y, best_score)


def _candidates(unit_N2: Array, *, ellipse: bool) -> Array:
    """Solve for the outlines through `CANDIDATES` sets of points spread around the edge."""
    points = 5 if ellipse else 3
    around_N = np.argsort(np.arctan2(unit_N2[:, 1], unit_N2[:, 0]), kind="stable")
    # Additive recurrence of Roberts (2018): even coverage without a random generator.
    phi = 1.0
    for _ in range(40):
        phi = (1 + phi) ** (1 / (points + 1))
    steps_M = phi ** -np.arange(1, points + 1)
    draws_SM = np.modf(0.5 + np.arange(1, CANDIDATES + 1)[:, None] * steps_M)[0]
    # One point from each sector, all sectors turned together, so that no two are neighbours.
    turn_S1 = draws_SM.sum(axis=1, keepdims=True)
    places_SM = np.modf((np.arange(points) + draws_SM) / points + turn_S1)[0]
    return _solve(unit_N2[around_N[(places_SM * len(unit_N2)).astype(int)]], ellipse=ellipse)


def _solve(points_SM2: Array, *, ellipse: bool) -> Array:
    """Least squares of x^2 + k y^2 = a x + b y + c for each set; k is 1 for a circle."""
    x_SM, y_SM = points_SM2[..., 0], points_SM2[..., 1]
    ones_SM = np.ones_like(x_SM)
    if ellipse:
        design = np.stack([x_SM, y_SM, ones_SM, -(y_SM**2)], axis=-1)
        target_SM = x_SM**2
    else:
        design = np.stack([x_SM, y_SM, ones_SM], axis=-1)
        target_SM = x_SM**2 + y_SM**2
    normal = np.einsum("smi,smj->sij", design, design)
    # Points on a line have no outline; the ridge keeps them solvable, `_possible` drops them.
    normal += 1e-9 * np.eye(design.shape[-1])
    moment = np.einsum("smi,sm->si", design, target_SM)
    solution = np.linalg.solve(normal, moment[..., None])[..., 0]
    k_S = solution[:, 3] if ellipse else np.ones(len(solution))
    safe_S = np.where(k_S > 1e-6, k_S, np.nan)
    x_S, y_S = solution[:, 0] / 2, solution[:, 1] / (2 * safe_S)
    square_S = solution[:, 2] + x_S**2 + safe_S * y_S**2
    radius_S = np.sqrt(np.where(square_S > 0, square_S, np.nan))
    return np.stack([x_S, y_S, radius_S, radius_S / np.sqrt(safe_S)], axis=-1)


def _possible(parameters_S4: Array, limits: tuple[float, float]) -> NDArray[np.bool_]:
    radius_x_S, radius_y_S = parameters_S4[:, 2], parameters_S4[:, 3]
    # Comparisons with NaN, which `_solve` gives where there is no outline, are false.
    stretch_S = radius_y_S / radius_x_S
    return (
        (radius_x_S > limits[0])
        & (radius_x_S < limits[1])
        & (stretch_S > STRETCH_RANGE[0])
        & (stretch_S < STRETCH_RANGE[1])
    )


def _residuals(parameters_S4: Array, unit_N2: Array) -> Array:
    """Signed distance from each outline, positive outside; exact for circles."""
    x_S1, y_S1, radius_x_S1, radius_y_S1 = (column[:, None] for column in parameters_S4.T)
    across_SN = (unit_N2[:, 0] - x_S1) / radius_x_S1
    down_SN = (unit_N2[:, 1] - y_S1) / radius_y_S1
    distance_SN = np.sqrt(across_SN * across_SN + down_SN * down_SN)
    residuals_SN: Array = (distance_SN - 1) * np.sqrt(radius_x_S1 * radius_y_S1)
    return residuals_SN


def _scores(parameters_S4: Array, unit_N2: Array, tolerance: float) -> Array:
    residuals_SN = _residuals(parameters_S4, unit_N2)
    # A point near the line counts up to 1; a point clearly outside costs as much.
    near_SN = np.clip(1.5 - np.abs(residuals_SN) / tolerance, 0, 1)
    outside_SN = residuals_SN > 3 * tolerance
    scores_S: Array = near_SN.mean(axis=1) - outside_SN.mean(axis=1)
    return scores_S
