"""Extractors whose weights are not ours: networks in files that a user has.

Beside the extractors that need nothing (`imagenet`, `phantom_classifier`, `colour`), the first step
of evaluation can be done with networks whose weights are had elsewhere: TorchScript, or vision
transformers (`vit`) such as RETFound (Zhou et al. 2023). Names carry the weights' digest, so that a
figure by one file is never printed as another's. InceptionV3 has a module of its own (`inception`).

N images, S side in pixels, C channels, D features.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from fundusgen.errors import ModelError
from fundusgen.evaluation.features import check_images, resized_batches, stacked
from fundusgen.evaluation.vit import VisionTransformer

Rgb = tuple[float, float, float]
# Of ImageNet, as values from 0 to 1: what most networks, RETFound among them, were trained with.
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
_SIZE_PX = 224
_TORCHSCRIPT = (".pt", ".ts")


class NetworkFeatures:
    """A network from a file as an extractor; what it returns is checked at every call.

    Args:
        network: From (N, 3, size_px, size_px) float32, normalised, to (N, D).
        name: Of the file; lower case, no spaces.
        digest: SHA-256 of the weights.
        kind: What the network is, for the version.
        size_px: Side that images are brought to.
        mean: Of each channel, subtracted from values from 0 to 1.
        std: What they are divided by then.

    Raises:
        ModelError: The network does not turn an image into a row of finite numbers.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        name: str,
        digest: str,
        kind: str,
        size_px: int,
        mean: Rgb,
        std: Rgb,
    ) -> None:
        """Try the network on one black image."""
        self.name, self.digest = f"{name}-{digest[:8]}", digest
        self.version = f"{kind}, {size_px} px, mean {_listed(mean)}, std {_listed(std)}, 1"
        self._network, self._size_px = network, size_px
        self._mean_C11, self._std_C11 = (torch.tensor(rgb).view(3, 1, 1) for rgb in (mean, std))
        with torch.inference_mode():
            black_1CSS = torch.zeros((1, 3, size_px, size_px))
            self.dimensions = int(self._features(black_1CSS).shape[1])

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features; see `fundusgen.evaluation.features.FeatureExtractor`.

        Raises:
            ModelError: They are not finite, or not one row for each image.
        """
        check_images(images_NSSC)
        with torch.inference_mode():
            batches = resized_batches(images_NSSC, self._size_px)
            return stacked(map(self._features, batches), self.dimensions)

    def _features(self, images_NCSS: Tensor) -> Tensor:
        normalised_NCSS = (images_NCSS / 255 - self._mean_C11) / self._std_C11
        try:
            features_ND = self._network(normalised_NCSS.contiguous())
        except RuntimeError as error:
            raise ModelError(
                f"the network {self.name} fails on images of {self._size_px} px: "
                f"{(str(error).strip() or 'no reason is given').splitlines()[-1]}",
                expected="a network that takes (N, 3, S, S) and any N",
                remedy="Give the size that it was made for as `size_px`, or save it again",
            ) from error
        return checked(features_ND, len(images_NCSS), self.name)


def encoder_from(
    path: Path,
    *,
    architecture: str | None = None,
    size_px: int = _SIZE_PX,
    heads: int | None = None,
    mean: Rgb = IMAGENET_MEAN,
    std: Rgb = IMAGENET_STD,
) -> NetworkFeatures:
    """Make an extractor of a file with a network.

    A TorchScript file holds code that is run when it is used: open only files from sources that
    are trusted. Safetensors hold numbers only. Pickled checkpoints are not opened at all.

    Args:
        path: `.pt` or `.ts` for TorchScript (deprecated by torch, which warns of it), which takes
            (N, 3, S, S) and returns (N, D); or `.safetensors` with the weights of an architecture
            that is known here.
        architecture: Of safetensors: "vit", a vision transformer under timm's names of weights.
        size_px: Side of the images that a TorchScript network takes; a ViT's follows from its
            weights.
        heads: Attention heads of a ViT, which its weights do not tell; width / 64 where None, as
            in ViT-S, -B and -L.
        mean: Of each channel in training, of values from 0 to 1.
        std: The same of the standard deviation.

    Raises:
        ModelError: The file is missing, of another kind or broken, or is no such network.
    """
    content = weights_content(path, "Correct the path, or download the weights")
    digest = hashlib.sha256(content).hexdigest()
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "network"
    if path.suffix in _TORCHSCRIPT:
        if architecture is not None or heads is not None:
            raise ModelError(
                f"an architecture for {path.name}, which carries its own",
                remedy="Leave `architecture` and `heads` out for TorchScript files",
            )
        network = _torchscript(path)
        return NetworkFeatures(network, name, digest, "torchscript", size_px, mean, std)
    if path.suffix != ".safetensors":
        raise ModelError(
            f"an encoder in {path.name}",
            expected=f"a file ending in {', '.join(_TORCHSCRIPT)} or .safetensors",
            remedy="Save its state as safetensors; pickled checkpoints can run any code",
        )
    if architecture != "vit":
        raise ModelError(
            f"{path.name} as architecture {architecture!r}",
            expected='"vit", the one that is known here',
            remedy='Give `architecture="vit"`, or save the network as TorchScript',
        )
    try:
        vit = VisionTransformer(load(content), heads)
    except SafetensorError as error:
        raise ModelError(
            f"{path.name} cannot be read as safetensors: {error}",
            remedy="Download or convert it again",
        ) from error
    return NetworkFeatures(vit, name, digest, vit.description, vit.size_px, mean, std)


def checked(features_ND: object, count: int, name: str) -> Tensor:
    """Refuse what is not one finite row of features for each image.

    Raises:
        ModelError: Says what came instead.
    """
    if not isinstance(features_ND, Tensor) or features_ND.ndim != 2:
        shape = tuple(features_ND.shape) if isinstance(features_ND, Tensor) else "no tensor"
        raise ModelError(
            f"the network {name} gives {shape} for {count} images",
            expected="a tensor (N, D)",
            remedy="Pool its feature map and return that alone when you save it",
        )
    if len(features_ND) != count or not bool(torch.isfinite(features_ND).all()):
        raise ModelError(
            f"the network {name} gives {len(features_ND)} rows for {count} images, or rows that "
            "are not finite",
            expected="one row of finite numbers for each image",
            remedy="Check the weights and the normalisation it was trained with",
        )
    return features_ND.float()


def weights_content(path: Path, remedy: str) -> bytes:
    """Read a file of weights.

    Raises:
        ModelError: It cannot be read; `remedy` says what to do.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}",
            expected="a file with the weights of a network",
            remedy=remedy,
        ) from error


def _torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        network: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ModelError(
            f"{path.name} is no TorchScript file",
            expected="what `torch.jit.save` writes",
            remedy="Save the state as safetensors instead; pickled checkpoints are not opened",
        ) from error
    return network.eval()


def _listed(rgb: Rgb) -> str:
    return " ".join(f"{value:g}" for value in rgb)
