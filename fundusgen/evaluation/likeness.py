"""Whether pictures are fundus photographs at all, before anything is measured with them.

A folder of other pictures would give figures as any other does. Features of a network that was
trained on everyday pictures tell the two apart: of five hospitals' photographs, the median
similarity to the fifth nearest phantom was 0.80 to 0.83; of cats, cups and stars 0.27 to 0.54.

N, M images, D features.
"""

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.evaluation.features import FeatureExtractor
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.raw_phantoms import raw_phantoms
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS

_LOOKED_AT, _PHANTOMS_OF_EACH, _NEIGHBOUR = 200, 25, 5
_LEAST_SIMILARITY = 0.67


def check_photographs(
    images: ImageSet, imagenet: FeatureExtractor, where: str, seed: int = 0
) -> None:
    """Refuse a set of which most are no fundus photographs.

    Args:
        images: To look at some of, at random.
        imagenet: `fundusgen.evaluation.imagenet.ImageNetFeatures`.
        where: What to call them in an error.
        seed: Of the choice.

    Raises:
        DataError: They look like something else.
    """
    chosen = np.random.default_rng(seed).permutation(len(images))[:_LOOKED_AT]
    counts = dict.fromkeys(PHANTOM_CONDITIONS, _PHANTOMS_OF_EACH)
    phantoms = raw_phantoms(counts, images.images_NSSC.shape[1])
    similarity = typical_similarity(
        imagenet(images.images_NSSC[np.sort(chosen)]), imagenet(phantoms.images_NSSC)
    )
    if similarity < _LEAST_SIMILARITY:
        raise DataError(
            f"Most pictures in {where} do not look like fundus photographs (similarity "
            f"{similarity:.2f})",
            expected=f"photographs of the retina, {_LEAST_SIMILARITY} or more",
            remedy="Look into the folder, and at the column `file` of its manifest",
        )


def typical_similarity(x_ND: NDArray[np.floating], phantoms_MD: NDArray[np.floating]) -> float:
    """Median over images of the cosine similarity to the fifth nearest phantom, -1 to 1."""
    cosines_NM = _unit(x_ND) @ _unit(phantoms_MD).T
    nearest_N = np.sort(cosines_NM, axis=1)[:, -_NEIGHBOUR]
    return float(np.median(nearest_N))


def _unit(features_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    features = np.asarray(features_ND, np.float64)
    lengths_N1 = np.linalg.norm(features, axis=1, keepdims=True)
    unit_ND: NDArray[np.float64] = features / np.maximum(lengths_N1, np.finfo(np.float64).tiny)
    return unit_ND
