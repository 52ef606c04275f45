"""Features of colour alone: what a generator gets right first, and cheapest.

A generator that is near by these features and far by others has learned the cameras and nothing
of the eyes. Colours are taken inside the field of view, which framing leaves black outside of.
"""

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.features import check_images

# Sum of the three channels from which a pixel counts as lit.
_LIT = 48
# Thirds of each channel over a public collection of phantoms, of 0 to 255.
_EDGES = ((140, 184), (67, 89), (22, 50))
# Chosen so that the mean square of a feature is of order 1, which the cubic kernel of KID expects.
_COLOUR_SCALE, _SHARE_SCALE = 8.0, 4.0
_BINS = 3**3


class ColourFeatures:
    """Mean and spread of each channel and a 3 x 3 x 3 histogram, 33 features.

    An image without a lit pixel has only zeros. Shares of the histogram enter by their square
    root, so that rare colours count (Hellinger distance).
    """

    name = "colour"
    version = "1"
    digest = ""
    dimensions = 6 + _BINS

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features; see `fundusgen.evaluation.features.FeatureExtractor`."""
        check_images(images_NSSC)
        features_ND = np.zeros((len(images_NSSC), self.dimensions), np.float32)
        for features_D, image_SSC in zip(features_ND, images_NSSC, strict=True):
            lit_PC = image_SSC[image_SSC.sum(axis=2, dtype=np.int64) >= _LIT]
            if len(lit_PC):
                features_D[:] = _features(lit_PC)
        return features_ND


def _features(lit_PC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Features of the lit pixels P of one image."""
    colours_PC = lit_PC / 255
    levels = [np.searchsorted(edges, lit_PC[:, c], "right") for c, edges in enumerate(_EDGES)]
    shares = np.bincount((levels[0] * 3 + levels[1]) * 3 + levels[2], minlength=_BINS) / len(lit_PC)
    moments = np.concatenate([colours_PC.mean(axis=0), colours_PC.std(axis=0)])
    return np.concatenate([_COLOUR_SCALE * moments, _SHARE_SCALE * np.sqrt(shares)])
