"""Every image is looked at once, however many sets of an evaluation it is in.

Part of the first step of evaluation, beside `features.CachedFeatures`, which knows whole sets
again in a later run. What is measured overall is of some of the images that were drawn, what is
measured by condition of others, and classifiers learn from all of them.

N images, S side in pixels, D features.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.features import FeatureExtractor, check_images


class RememberedFeatures:
    """An extractor that remembers in memory what it has computed, by the content of each image.

    Features vary in the last digits with the batch that an image is computed in. So the features
    of an image are those of the first set that it was in.

    Args:
        extractor: Computes what is not known yet.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        """Know nothing yet."""
        self._extractor = extractor
        self._known: dict[bytes, NDArray[np.float32]] = {}
        self.name, self.version = extractor.name, extractor.version
        self.digest, self.dimensions = extractor.digest, extractor.dimensions

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features of the images that are new; see `FeatureExtractor`."""
        check_images(images_NSSC)
        keys = [_key(image_SSC) for image_SSC in images_NSSC]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        places = sorted(new.values())
        if places:
            features_ND = self._extractor(images_NSSC[places])
            for place, features_D in zip(places, features_ND, strict=True):
                self._known[keys[place]] = features_D
        if not keys:
            return np.empty((0, self.dimensions), np.float32)
        return np.stack([self._known[key] for key in keys])


def _key(image_SSC: NDArray[np.uint8]) -> bytes:
    # With the side: images of one colour and different sides would not be told apart otherwise.
    content = np.ascontiguousarray(image_SSC).tobytes()
    return hashlib.sha256(len(image_SSC).to_bytes(4, "big") + content).digest()
