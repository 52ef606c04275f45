"""How different the images of a set are from one another, generated and real ones alike.

Distances between sets (`fidelity`) say little of a generator that draws a few good pictures again
and again. Three measures say more: MS-SSIM between images of one condition, where high values mean
that they are alike (Odena et al. 2017); the distance to the nearest other image in features; and
the Vendi score, how many images that have nothing in common would be as diverse (Friedman and
Dieng 2023).

None of them has a scale of its own: what a generator scores is read beside what real images score,
with as many images of each condition and one image of a patient, since both eyes of a patient are
nearly a pair of duplicates. `paired_diversity` takes care of that.

N images, S side in pixels, C channels, D features, E pairs, P patients, B replicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.resampling import Estimate, Floats, resampled

PAIRS = 500
# Every replicate of the Vendi score needs the eigenvalues of a matrix anew.
REPLICATES = 100
# Weights of the scales, finest first: Wang et al. 2003, section 3.2.
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# The Gaussian window of SSIM is 11 px wide and has to fit into the coarsest scale.
_COARSEST_PX = 16
_BATCH = 100


@dataclass(frozen=True)
class Diversity:
    """How diverse a set is.

    Attributes:
        ms_ssim: Mean similarity of two images of one condition, 0 to 1; lower is more diverse.
        nearest: Mean distance of an image to the nearest other one, in features.
        vendi: Effective number of different images, 1 to `images`.
        images: How many images these figures are of, each of another patient.
    """

    ms_ssim: Estimate
    nearest: Estimate
    vendi: Estimate
    images: int


def paired_diversity(
    generated: ImageSet,
    generated_ND: NDArray[np.floating],
    real: ImageSet,
    real_ND: NDArray[np.floating],
    seed: int,
    *,
    pairs: int = PAIRS,
    replicates: int = REPLICATES,
) -> tuple[Diversity, Diversity]:
    """Measure a generated set and a real one with equally many images of each condition.

    Args:
        generated: The images to judge.
        generated_ND: Their features.
        real: The images to compare with, of which one a patient is taken, at random.
        real_ND: Their features, by the same extractor.
        seed: Of the choice of images and pairs, and of the resampling.
        pairs: Of images for MS-SSIM.
        replicates: Of the bootstrap.

    Returns:
        That of the generated images and that of the real ones.

    Raises:
        ValueError: As in `diversity`; above all, where the sets share no condition.
    """
    rng = np.random.default_rng(seed)
    chosen = [one_image_a_patient(images.patients_N, rng) for images in (generated, real)]
    names = [
        np.array(images.conditions_N)[places]
        for images, places in zip((generated, real), chosen, strict=True)
    ]
    count_of = {
        name: min(int((of_set == name).sum()) for of_set in names) for name in real.conditions
    }
    kept = [
        np.concatenate(
            [rng.permutation(places[of_set == name])[:count] for name, count in count_of.items()]
        )
        for places, of_set in zip(chosen, names, strict=True)
    ]
    one, other = (
        diversity(
            images.subset(places), features_ND[places], rng, pairs=pairs, replicates=replicates
        )
        for images, features_ND, places in (
            (generated, generated_ND, kept[0]),
            (real, real_ND, kept[1]),
        )
    )
    return one, other


def diversity(
    images: ImageSet,
    features_ND: NDArray[np.floating],
    rng: np.random.Generator,
    *,
    pairs: int = PAIRS,
    replicates: int = REPLICATES,
) -> Diversity:
    """Measure one set, from one image of each patient, with 95 % intervals over patients.

    Resampling repeats images, which no measure of diversity forgives, so replicates weigh what was
    measured once: a pair counts by the product of its images' counts, nearest neighbours stay those
    of the set as it is, and the Vendi score takes counts as probabilities. The last two still move
    down; `Estimate.interval` uses the spread alone.

    Args:
        images: The set.
        features_ND: Its features, finite.
        rng: Source of the choice of images and pairs, and of the resampling.
        pairs: E, for MS-SSIM; drawn with replacement, conditions as often as they occur.
        replicates: B.

    Raises:
        ValueError: Features do not fit, there are fewer than `LEAST_GROUPS` patients, or no two
            images share a condition.
    """
    if features_ND.ndim != 2 or len(features_ND) != len(images):
        raise ValueError(f"features {features_ND.shape} of {len(images)} images")
    if not np.isfinite(features_ND).all():
        raise ValueError("features are not finite: a broken extractor says nothing of diversity")
    places = one_image_a_patient(images.patients_N, rng)
    single, single_ND = images.subset(places), np.asarray(features_ND[places], np.float64)
    counts_BN = resampled(len(single), replicates, rng)
    nearest_N = nearest_distances(single_ND)
    nearest = Estimate(float(nearest_N.mean()), counts_BN @ nearest_N / len(single))
    vendi_B = [vendi_score(single_ND, counts_N) for counts_N in counts_BN]
    return Diversity(
        _ms_ssim_estimate(single, counts_BN, pairs, rng),
        nearest,
        Estimate(vendi_score(single_ND), np.array(vendi_B)),
        len(single),
    )


def one_image_a_patient(patients_N: Sequence[str], rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose one image of each patient at random; places, ascending."""
    order_N = rng.permutation(len(patients_N))
    first = {patients_N[place]: int(place) for place in order_N}
    return np.array(sorted(first.values()), np.int64)


def vendi_score(
    features_ND: NDArray[np.floating], weights_N: NDArray[np.floating] | None = None
) -> float:
    """Compute the exponential of the entropy of the eigenvalues of cosines over N.

    Features of networks that are all positive leave all cosines high and the score low, so that it
    shows collapse and little else.

    Args:
        features_ND: None of them all zero.
        weights_N: How often each image counts; once where None.

    Returns:
        1 where all point the same way, to min(N, D) where none has anything of another.

    Raises:
        ValueError: Features of an image are all zero: there is no angle to them.

    Source: Friedman and Dieng 2023, definition 3.1, and appendix for probabilities; the cosine
        kernel of section 5.
    """
    x_ND = np.asarray(features_ND, np.float64)
    length_N = np.linalg.norm(x_ND, axis=1)
    if not length_N.all():
        raise ValueError("an image without features: the cosine to others is not defined")
    weights = np.ones(len(x_ND)) if weights_N is None else np.asarray(weights_N, np.float64)
    there = weights > 0
    share = np.sqrt(weights[there] / weights.sum()) / length_N[there]
    rows_ND = x_ND[there] * share[:, None]
    # Both have the same eigenvalues but for zeros.
    gram = rows_ND @ rows_ND.T if len(rows_ND) < rows_ND.shape[1] else rows_ND.T @ rows_ND
    values = np.linalg.eigvalsh(gram)
    positive = values[values > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def nearest_distances(features_ND: NDArray[np.floating]) -> Floats:
    """Compute the Euclidean distance (N,) of each image to the nearest other one.

    Raises:
        ValueError: There are fewer than two images.
    """
    if len(features_ND) < 2:
        raise ValueError(f"the nearest other of {len(features_ND)} images: at least 2 are needed")
    x_ND = np.asarray(features_ND, np.float64)
    square_N = (x_ND**2).sum(axis=1)
    squares_NN = square_N[:, None] + square_N - 2 * (x_ND @ x_ND.T)
    np.fill_diagonal(squares_NN, np.inf)
    # By differences once more, which a product of large numbers does not give for near ones.
    nearest_ND = x_ND[squares_NN.argmin(axis=1)]
    distances_N: Floats = np.linalg.norm(x_ND - nearest_ND, axis=1)
    return distances_N


def ms_ssim(images_NSSC: NDArray[np.uint8], others_NSSC: NDArray[np.uint8]) -> Floats:
    """Compute the multiscale structural similarity (N,) of images, one by one.

    The original has five scales, which asks for 176 px. Here there are as many as leave the
    coarsest one 16 px or more: five from 256 px, four from 128, three from 64, two from 32; their
    weights are the first of the original's, made to sum to 1. So figures of different sides are
    not comparable. The black around the field of view is in every image and raises all figures;
    as in all of torchmetrics' figures, the coarsest scale is averaged over the whole picture, with
    its border mirrored, and not only where the window fits.

    Args:
        images_NSSC: (N, S, S, 3) uint8, 32 px or more.
        others_NSSC: The same, to compare with.

    Raises:
        ValueError: Images are smaller.

    Source: Wang et al. 2003; scales whose contrast is opposed count as 0 (torchmetrics' "relu").
    """
    side = images_NSSC.shape[1]
    if side < 2 * _COARSEST_PX:
        raise ValueError(f"images of {side} px: MS-SSIM needs {2 * _COARSEST_PX} px or more")
    scales = _SCALES[: (side // _COARSEST_PX).bit_length()]
    betas = tuple(weight / sum(scales) for weight in scales)
    found = [
        multiscale_structural_similarity_index_measure(
            _as_tensor(images_NSSC[start : start + _BATCH]),
            _as_tensor(others_NSSC[start : start + _BATCH]),
            reduction="none",
            data_range=1.0,
            betas=betas,
            normalize="relu",
        ).numpy()
        for start in range(0, len(images_NSSC), _BATCH)
    ]
    return np.concatenate(found).astype(np.float64) if found else np.empty(0)


def _ms_ssim_estimate(
    images: ImageSet, counts_BN: Floats, pairs: int, rng: np.random.Generator
) -> Estimate:
    pairs_E2 = _pairs(images.conditions_N, pairs, rng)
    one_E, other_E = pairs_E2.T
    similar_E = np.concatenate(
        [
            ms_ssim(images.images_NSSC[one], images.images_NSSC[other])
            for one, other in zip(
                np.array_split(one_E, -(-pairs // _BATCH)),
                np.array_split(other_E, -(-pairs // _BATCH)),
                strict=True,
            )
        ]
    )
    weights_BE = counts_BN[:, one_E] * counts_BN[:, other_E]
    return Estimate(float(similar_E.mean()), weights_BE @ similar_E / weights_BE.sum(axis=1))


def _pairs(conditions_N: Sequence[str], pairs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw pairs (E, 2) of two images of one condition."""
    names_N = np.array(conditions_N)
    alike = {name: np.flatnonzero(names_N == name) for name in dict.fromkeys(conditions_N)}
    firsts = [place for places in alike.values() if len(places) > 1 for place in places]
    if not firsts:
        raise ValueError("no two images of a condition: MS-SSIM compares within conditions")
    drawn = []
    for first in rng.choice(firsts, pairs):
        others = alike[names_N[first]]
        drawn.append((first, rng.choice(others[others != first])))
    return np.array(drawn, np.int64)


def _as_tensor(images_NSSC: NDArray[np.uint8]) -> torch.Tensor:
    images_NCSS = torch.from_numpy(np.ascontiguousarray(images_NSSC)).permute(0, 3, 1, 2)
    return images_NCSS.to(torch.float32) / 255
