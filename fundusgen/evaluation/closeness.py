"""Whom generated images are nearest to: patients of the training set, or others.

The part of `copying` that compares both kinds of patients directly. As training and held-out
patients were divided at random, a generator that copies nobody is as often nearest to the one as
to the other, however bland or wide its images are; so the test here is exact for any generator.

N generated images, P patients, Q and R of them in training and held out, B replicates.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.patient_features import (
    PatientFeatures,
    Places,
    check_finite,
    distance_blocks,
    nearest,
)
from fundusgen.evaluation.resampling import REPLICATES, Estimate, Floats, resampled

# Subsets of the larger side that are averaged over, and random divisions of the p-value.
_SUBSETS, _DIVISIONS = 20, 2000
# Distances that differ by less, in units of the mean, differ by rounding.
_TIED = 1e-6


@dataclass(frozen=True, eq=False)
class NearerShare:
    """How often a generated image is nearer to a training patient than to a held-out one.

    Attributes:
        share: Of generated images; 0.5 is expected of an honest generator. Replicates resample
            patients, each with the generated images that are nearest to them.
        p_value: Chance of so many where it was decided at random which patients were trained on.
        patients: How many of each kind are compared at a time.
    """

    share: Estimate
    p_value: float
    patients: int


@dataclass(frozen=True)
class ClosePair:
    """A generated image and the photographs it is nearest to. Never leaves the site.

    Attributes:
        generated: Place of the generated image.
        train: Place of the nearest training photograph.
        held_out: Place of the nearest held-out photograph.
        train_distance: From the generated image.
        held_out_distance: The same to the held-out photograph.
    """

    generated: int
    train: int
    held_out: int
    train_distance: float
    held_out_distance: float

    @property
    def ratio(self) -> float:
        """Distance to the training photograph over that to the held-out one; 1 where both are 0.

        Below 1 for most images where there are more training than held-out photographs.
        """
        return float(_ratios(np.array(self.train_distance), np.array(self.held_out_distance)))


def nearer_share(
    generated_ND: NDArray[np.floating],
    train: PatientFeatures,
    held_out: PatientFeatures,
    rng: np.random.Generator,
    *,
    closest: float = 1.0,
    replicates: int = REPLICATES,
) -> NearerShare:
    """Measure the share of generated images that are nearer to training than to held-out patients.

    A patient is as near as their nearest photograph; equal distances share the image. Where there
    are more patients of one kind, random subsets of them are compared, as many as of the other,
    and averaged. The p-value divides all patients at random instead, in the sizes there are.

    Args:
        generated_ND: Features of generated images.
        train: Photographs that the generator was trained on.
        held_out: Photographs of other patients, who could as well have been in the training set.
        rng: Source of subsets, resampling and divisions.
        closest: Which share of the generated images is looked at: those nearest to any photograph
            of either kind. All of them by default; a few copies among many honest images are
            found among the nearest only.
        replicates: Of the bootstrap.

    Raises:
        ValueError: There are fewer than `LEAST_GROUPS` patients of a kind, features do not fit, or
            `closest` is out of range.

    Source: the p-value is that of a randomisation test, Phipson and Smyth 2010.
    """
    check_finite(generated_ND)
    if not 0 < closest <= 1:
        raise ValueError(f"a share of the closest images is above 0 and at most 1, not {closest}")
    if closest < 1:
        generated_ND = _closest(generated_ND, train, held_out, closest)
    trained, others = train.patient_count, held_out.patient_count
    train_weights_BQ = resampled(trained, replicates, rng)
    held_out_weights_BR = resampled(others, replicates, rng)
    equal = min(trained, others)
    subsets = [
        np.concatenate([_some(trained, equal, rng), trained + _some(others, equal, rng)])
        for _ in range(1 if trained == others else _SUBSETS)
    ]
    # The last subset is everybody, for the p-value.
    everybody_P = np.arange(trained + others)
    counts_TP = _nearest_counts(generated_ND, train, held_out, [*subsets, everybody_P])
    of_train_Q, of_held_out_R = np.split(counts_TP[:-1].mean(axis=0), [trained])
    to_train_B, to_held_out_B = train_weights_BQ @ of_train_Q, held_out_weights_BR @ of_held_out_R
    # Where all images are nearest to patients who were not drawn again, nothing is known.
    drawn_B = to_train_B + to_held_out_B
    shares_B = np.where(drawn_B > 0, to_train_B / np.where(drawn_B > 0, drawn_B, 1), 0.5)
    share = float(of_train_Q.sum() / len(generated_ND))
    p_value = _chance_of_as_many(counts_TP[-1], trained, rng)
    return NearerShare(Estimate(share, shares_B), p_value, equal)


def closest_pairs(
    generated_ND: NDArray[np.floating],
    train: PatientFeatures,
    held_out: PatientFeatures,
    count: int,
) -> tuple[ClosePair, ...]:
    """Find the generated images that look most like copies, to be shown side by side.

    Args:
        generated_ND: Features of generated images.
        train: Photographs that the generator was trained on.
        held_out: Photographs of other patients.
        count: Most pairs to give.

    Returns:
        Those of the smallest ratio of distances, smallest first.

    Raises:
        ValueError: Features do not fit.
    """
    check_finite(generated_ND)
    train_distances_N, train_N = nearest(generated_ND, train.features_ND)
    held_out_distances_N, held_out_N = nearest(generated_ND, held_out.features_ND)
    ratios_N = _ratios(train_distances_N, held_out_distances_N)
    return tuple(
        ClosePair(
            int(place),
            int(train_N[place]),
            int(held_out_N[place]),
            float(train_distances_N[place]),
            float(held_out_distances_N[place]),
        )
        for place in np.argsort(ratios_N, kind="stable")[:count]
    )


def _closest(
    generated_ND: NDArray[np.floating],
    train: PatientFeatures,
    held_out: PatientFeatures,
    share: float,
) -> NDArray[np.floating]:
    # Chosen without a look at who was trained on, so that the p-value holds.
    distances_SN = [nearest(generated_ND, side.features_ND)[0] for side in (train, held_out)]
    order_N = np.argsort(np.minimum(*distances_SN), kind="stable")
    return generated_ND[order_N[: math.ceil(share * len(order_N))]]


def _some(count: int, wanted: int, rng: np.random.Generator) -> Places:
    return np.sort(rng.permutation(count)[:wanted])


def _nearest_counts(
    generated_ND: NDArray[np.floating],
    train: PatientFeatures,
    held_out: PatientFeatures,
    subsets: list[Places],
) -> Floats:
    """How many generated images each patient of each subset T is the nearest to, (T, P)."""
    owners_M = np.concatenate([train.owners_N, train.patient_count + held_out.owners_N])
    order_M = np.argsort(owners_M, kind="stable")
    starts_P = np.flatnonzero(np.diff(owners_M[order_M], prepend=-1))
    photographs_MD = np.concatenate([train.features_ND, held_out.features_ND])[order_M]
    counts_TP = np.zeros((len(subsets), len(starts_P)))
    for _, distances_NM in distance_blocks(generated_ND, photographs_MD):
        distances_NP = np.minimum.reduceat(distances_NM, starts_P, axis=1)
        for counts_P, subset in zip(counts_TP, subsets, strict=True):
            within = distances_NP[:, subset]
            limit_N1 = within.min(axis=1, keepdims=True) + _TIED * within.mean(
                axis=1, keepdims=True
            )
            nearest_N, chosen = np.nonzero(within <= limit_N1)
            shared_N = np.bincount(nearest_N, minlength=len(within))
            np.add.at(counts_P, subset[chosen], 1 / shared_N[nearest_N])
    return counts_TP


def _chance_of_as_many(counts_P: Floats, trained: int, rng: np.random.Generator) -> float:
    observed = counts_P[:trained].sum()
    divided = [rng.permutation(counts_P)[:trained].sum() for _ in range(_DIVISIONS)]
    # The division there is counts as one of the random ones. Sums of shared images may round.
    as_many = int(np.sum(np.array(divided) >= observed - 1e-9))
    return (1 + as_many) / (1 + _DIVISIONS)


def _ratios(train_N: Floats, held_out_N: Floats) -> Floats:
    infinite_N = np.where(train_N > 0, np.inf, 1.0)
    known_N = held_out_N > 0
    ratios_N: Floats = np.where(known_N, train_N / np.where(known_N, held_out_N, 1), infinite_N)
    return ratios_N
