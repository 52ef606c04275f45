"""What a feature extractor is: from photographs to the numbers that sets of them are compared by.

The first step of evaluation. Every distance between sets of images (`fidelity`) is one between
their features, and says as much as the features see; so several extractors with different
blindness are used side by side: `imagenet` (texture and shape as in everyday photographs),
`phantom_classifier` (diseases and cameras, as far as the simulator knows them) and `colour`
(colour alone, the cheapest to imitate).

Photographs are compared as right eyes: left ones are mirrored before they come here, as
`fundusgen.data.patients.PatientDataset.pixels` serves them.

N images, S side in pixels, C colours (red, green, blue), D features.
"""

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from fundusgen.storage import write_atomically

# Memory, not speed: a batch of this size stays within a processor's cache.
_BATCH = 16


class FeatureExtractor(Protocol):
    """A fixed, public map from images to vectors.

    It has seen no patient of the study: what it knows, it knows from public images or from
    phantoms. Two extractors with the same name, version and digest give the same features, up to
    rounding.
    """

    @property
    def name(self) -> str:
        """What it is called in tables; lower case, no spaces."""

    @property
    def version(self) -> str:
        """Of the code around the weights: resizing, normalisation, which layer is read."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, in hexadecimal digits; empty where there are none."""

    @property
    def dimensions(self) -> int:
        """D, the number of features."""

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features of some images.

        Args:
            images_NSSC: (N, S, S, 3) uint8 RGB, right eyes; N may be 0.

        Returns:
            (N, D) float32, finite.

        Raises:
            ValueError: The array has another shape or type.
        """


class CachedFeatures:
    """An extractor that remembers on disk what it has computed, by the content of the images.

    Features of patients' photographs are patient data: the files can be read by their owner only,
    and belong where the photographs may lie.

    Args:
        extractor: Computes what is not there yet.
        folder: Of the cache; made if absent.
    """

    def __init__(self, extractor: FeatureExtractor, folder: Path) -> None:
        """Remember where to look; nothing is read yet."""
        self._extractor, self._folder = extractor, folder
        self.name, self.version = extractor.name, extractor.version
        self.digest, self.dimensions = extractor.digest, extractor.dimensions

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Look the features of exactly these images up, or compute and keep them."""
        path = self._folder / f"{self.name}-{self._key(images_NSSC)}.npy"
        if path.exists():
            known_ND: NDArray[np.float32] = np.load(path, allow_pickle=False)
            return known_ND
        features_ND = self._extractor(images_NSSC)
        content = BytesIO()
        np.save(content, features_ND, allow_pickle=False)
        write_atomically(path, content.getvalue(), mode=0o600)
        return features_ND

    def _key(self, images_NSSC: NDArray[np.uint8]) -> str:
        head = f"{self.name}\0{self.version}\0{self.digest}\0{images_NSSC.shape}\0"
        content = np.ascontiguousarray(images_NSSC)
        return hashlib.sha256(head.encode() + content.tobytes()).hexdigest()[:32]


def check_images(images_NSSC: NDArray[np.uint8]) -> None:
    """Refuse an array that is not a batch of square 8-bit RGB images.

    Raises:
        ValueError: It has another shape or type.
    """
    shape = images_NSSC.shape
    if images_NSSC.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(
            f"images must be (N, S, S, 3) uint8, not {shape} {images_NSSC.dtype}: "
            "frame them first, and give red, green and blue"
        )


def resized_batches(images_NSSC: NDArray[np.uint8], size_px: int) -> Iterator[Tensor]:
    """Go through images in batches, bilinearly resized.

    Larger images are smoothed before they are made smaller, so that fine detail does not turn
    into patterns.

    Args:
        images_NSSC: (N, S, S, 3) uint8.
        size_px: Side to resize to.

    Yields:
        float32, (up to a batch, 3, size_px, size_px), from 0 to 255, channels last in memory.
    """
    for start in range(0, len(images_NSSC), _BATCH):
        batch_NSSC = np.ascontiguousarray(images_NSSC[start : start + _BATCH])
        batch_NCSS = torch.from_numpy(batch_NSSC).permute(0, 3, 1, 2).to(torch.float32)
        if batch_NCSS.shape[-1] != size_px:
            batch_NCSS = interpolate(
                batch_NCSS, (size_px, size_px), mode="bilinear", align_corners=False, antialias=True
            )
        yield batch_NCSS.contiguous(memory_format=torch.channels_last)


def stacked(batches: Iterator[Tensor], dimensions: int) -> NDArray[np.float32]:
    """Put batches of features under one another; (0, D) where there is none."""
    features = [batch.numpy() for batch in batches]
    if not features:
        return np.empty((0, dimensions), np.float32)
    return np.concatenate(features).astype(np.float32, copy=False)
