"""Data-copying: are generated images nearer to training photographs than new photographs are?

The three-sample test C_T of Meehan, Chaudhuri and Dasgupta 2020 ("A Non-Parametric Test to Detect
Data-Copying in Generative Models"), and beside it the share of generated images that are nearer to
a training patient than to one held out (`closeness`). Follows `features`; needs to know who was in
the training set, so it runs at a site, and its result stays there.

C_T alone accuses a generator that is only bland: the middle of a distribution is near to
everybody, to patients whom it has never seen too. So the test is also made with both sets of
patients exchanged. Copying moves the first far below the second; blandness moves both.

N generated images, M training images, K held-out images, D features.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.cluster import KMeans

from fundusgen.evaluation.closeness import ClosePair, NearerShare, closest_pairs, nearer_share
from fundusgen.evaluation.patient_features import PatientFeatures, Places, check_finite, nearest
from fundusgen.evaluation.resampling import REPLICATES, Floats

__all__ = [
    "ClosePair",
    "Copying",
    "CopyingTest",
    "NearerShare",
    "closest_pairs",
    "copying",
    "copying_test",
    "mann_whitney_z",
    "nearer_share",
]

# Of a cell: with fewer points of either kind, U is far from normal.
LEAST_GENERATED, LEAST_REAL = 20, 8
_MOST_CELLS, _PATIENTS_PER_CELL = 10, 30
# Share of generated images that is looked at more closely.
_CLOSEST = 0.1


@dataclass(frozen=True)
class CopyingTest:
    """The test C_T. Well below zero: copied. Well above: the generator misses the photographs.

    Attributes:
        c_t: The statistic of the paper, an average of z-scores over cells.
        z: The same in units of its own spread, standard normal where the two distances are alike;
            with one cell, C_T itself.
        p_value: Chance of a z as low as this.
        cells: Cells that count.
        skipped: Cells with too few generated or real images to count.
        covered: Share of the real patients who are in cells that count.
    """

    c_t: float
    z: float
    p_value: float
    cells: int
    skipped: int
    covered: float


@dataclass(frozen=True, eq=False)
class Copying:
    """All that is known about copying; to be seen at the site only.

    Attributes:
        test: C_T of held-out patients against generated images, by distance to training patients.
        mirrored: The same with training and held-out patients exchanged: what blandness alone
            makes of C_T.
        share: How often a training patient is nearer than a held-out one; its p-value holds for
            bland generators too.
        closest_share: The same of the tenth of generated images nearest to any photograph: what
            shows a few copies among many honest images.
        closest: The pairs to look at.
    """

    test: CopyingTest
    mirrored: CopyingTest
    share: NearerShare
    closest_share: NearerShare
    closest: tuple[ClosePair, ...]


def copying(
    generated_ND: NDArray[np.floating],
    train: PatientFeatures,
    held_out: PatientFeatures,
    rng: np.random.Generator,
    *,
    cells: int | None = None,
    pairs: int = 12,
    replicates: int = REPLICATES,
) -> Copying:
    """Measure copying in all ways there are here.

    Args:
        generated_ND: Features of generated images.
        train: Photographs that the generator was trained on.
        held_out: Photographs of other patients of the same hospitals, split off at random.
        rng: Source of all that is random.
        cells: Of the partition; see `copying_test`.
        pairs: How many closest pairs to give.
        replicates: Of the bootstrap of the share.

    Raises:
        ValueError: As of `copying_test`, `nearer_share` and `closest_pairs`.
    """
    return Copying(
        copying_test(generated_ND, train, held_out, rng, cells=cells),
        copying_test(generated_ND, held_out, train, rng, cells=cells),
        nearer_share(generated_ND, train, held_out, rng, replicates=replicates),
        nearer_share(generated_ND, train, held_out, rng, closest=_CLOSEST, replicates=replicates),
        closest_pairs(generated_ND, train, held_out, pairs),
    )


def copying_test(
    generated_ND: NDArray[np.floating],
    train: PatientFeatures,
    held_out: PatientFeatures,
    rng: np.random.Generator,
    *,
    cells: int | None = None,
) -> CopyingTest:
    """Test whether generated images are nearer to training images than held-out ones are.

    In each cell of a k-means partition of the training features, distances to the nearest training
    image of the cell are ranked (Mann-Whitney). z-scores are averaged over cells, weighted by the
    share of held-out patients in them.

    Photographs of a patient are not independent, so each held-out patient enters with one, drawn
    at random. Training photographs are what is measured against, and enter all.

    Args:
        generated_ND: Features of at least `LEAST_GENERATED` generated images.
        train: Photographs that the generator was trained on.
        held_out: Photographs of at least `LEAST_REAL` others.
        rng: Draws the photographs, and the first centres of k-means.
        cells: Of the partition; one for 30 held-out patients where None, at most 10. Where no
            cell has points enough, there is one for all.

    Raises:
        ValueError: There are too few images, or features do not fit.

    Source: Meehan et al. 2020, section 4: Z_U and C_T over the cells with a generated share of at
        least tau, here 20 images. The weight is P_n, of the held-out sample, as in the paper and
        the authors' code. z and its p-value are ours: z-scores of cells are independent.
    """
    check_finite(generated_ND)
    real_KD = held_out.one_image_each(rng)
    if len(generated_ND) < LEAST_GENERATED or len(real_KD) < LEAST_REAL:
        raise ValueError(
            f"{len(generated_ND)} generated images and {len(real_KD)} patients: at least "
            f"{LEAST_GENERATED} and {LEAST_REAL} are needed"
        )
    train_MD = np.asarray(train.features_ND, np.float64)
    wanted = cells or max(1, min(_MOST_CELLS, len(real_KD) // _PATIENTS_PER_CELL))
    centres_CD = _centres(train_MD, min(wanted, len(np.unique(train_MD, axis=0))), rng)
    scores, counts = _cell_scores(generated_ND, train_MD, real_KD, centres_CD)
    if not scores:
        centres_CD = centres_CD[:1]
        scores, counts = _cell_scores(generated_ND, train_MD, real_KD, centres_CD)
    weights = np.array(counts) / sum(counts)
    c_t = float(weights @ np.array(scores))
    z = c_t / math.sqrt(float(weights @ weights))
    skipped = len(centres_CD) - len(scores)
    return CopyingTest(c_t, z, float(norm.cdf(z)), len(scores), skipped, sum(counts) / len(real_KD))


def mann_whitney_z(generated_N: Floats, real_K: Floats) -> float:
    """Standardise Mann-Whitney's U of generated distances over real ones.

    Args:
        generated_N: Distances of generated images.
        real_K: Distances of real images.

    Returns:
        z, below zero where generated images are nearer. Ties count half; the variance is that
        without ties, which is too large rather than too small.

    Source: Meehan et al. 2020, equation 5; Mann and Whitney 1947.
    """
    n, k = len(generated_N), len(real_K)
    ranks = rankdata(np.concatenate([generated_N, real_K]))
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    return (u - n * k / 2) / math.sqrt(n * k * (n + k + 1) / 12)


def _centres(train_MD: Floats, cells: int, rng: np.random.Generator) -> Floats:
    seed = int(rng.integers(2**31))
    centres_CD: Floats = KMeans(cells, n_init=3, random_state=seed).fit(train_MD).cluster_centers_
    return centres_CD


def _cell_scores(
    generated_ND: NDArray[np.floating], train_MD: Floats, real_KD: Floats, centres_CD: Floats
) -> tuple[list[float], list[int]]:
    """z-scores of the cells that count, and how many real patients are in each."""
    generated_cells_N, train_cells_M, real_cells_K = (
        _cells(features, centres_CD) for features in (generated_ND, train_MD, real_KD)
    )
    scores, counts = [], []
    for cell in range(len(centres_CD)):
        generated = generated_ND[generated_cells_N == cell]
        train, real = train_MD[train_cells_M == cell], real_KD[real_cells_K == cell]
        if len(generated) >= LEAST_GENERATED and len(real) >= LEAST_REAL and len(train):
            scores.append(mann_whitney_z(nearest(generated, train)[0], nearest(real, train)[0]))
            counts.append(len(real))
    return scores, counts


def _cells(features_ND: NDArray[np.floating], centres_CD: Floats) -> Places:
    return nearest(features_ND, centres_CD)[1]
