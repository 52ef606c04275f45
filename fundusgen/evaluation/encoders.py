"""Extractors whose weights are not ours: Inception as papers use it, and files that a user has.

Beside the extractors that need nothing (`imagenet`, `phantom_classifier`, `colour`), the first step
of evaluation can be done with networks whose weights are had elsewhere: InceptionV3 of the original
"FID" (Heusel et al. 2017), or encoders of retinal photographs such as RETFound (Zhou et al. 2023),
a ViT-L/16 trained as a masked autoencoder (He et al. 2022). Names carry the weights' digest, so
that a figure by one file is never printed as another's.

N images, S side in pixels, C channels, D features, T tokens.
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

from fundusgen.errors import ModelError
from fundusgen.evaluation.features import check_images, resized_batches, stacked

Rgb = tuple[float, float, float]
# Of ImageNet, as values from 0 to 1: what most networks, RETFound among them, were trained with.
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
_SIZE_PX = 224
_TORCHSCRIPT = (".pt", ".ts")

# torch-fidelity's conversion of the original weights; the file is named by its digest's start.
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_DIGEST = "6726825d"
_INCEPTION_PX, _INCEPTION_DIMENSIONS = 299, 2048

# Width of an attention head in ViT-S, -B and -L (Dosovitskiy et al. 2021, table 1).
_HEAD_WIDTH = 64
_EPSILON = 1e-6
# Parts of a checkpoint that its encoder does without: classifiers, and a masked autoencoder's rest.
_BESIDE = re.compile(r"head[._]|decoder|mask_token$")


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


class InceptionFeatures:
    """InceptionV3 as in most papers' FID: 2048 features of its last average pooling.

    The network of torch-fidelity, through torchmetrics, with the resizing of the original. Figures
    are comparable with published ones where the number of images is too.

    Args:
        weights: torch-fidelity's file of weights; where it keeps what it downloads, if None.

    Raises:
        ModelError: The package or the weights are not there, or it is another file. Nothing is
            downloaded, and since torch-fidelity unpickles, only the one known file is opened.
    """

    name = "inception"
    version = "torch-fidelity inception-v3-compat 2048, 1"
    dimensions = _INCEPTION_DIMENSIONS

    def __init__(self, weights: Path | None = None) -> None:
        """Load the weights."""
        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
        for package in ("torchvision", "torch_fidelity"):
            try:
                importlib.import_module(package)
            # A torchvision that was built for another torch fails with a RuntimeError.
            except (ImportError, RuntimeError) as error:
                raise ModelError(
                    f"the package {package} is not installed, or not for this torch",
                    expected="torch-fidelity, which has the Inception network of FID",
                    remedy="Run `pip install torch-fidelity`, with a torchvision that fits torch",
                ) from error
        content = _content(path, f"Download {_INCEPTION_FILE} of torch-fidelity's release v0.2.0")
        self.digest = hashlib.sha256(content).hexdigest()
        if not self.digest.startswith(_INCEPTION_DIGEST):
            raise ModelError(
                f"weights of Inception with the digest {self.digest[:8]}",
                expected=f"{_INCEPTION_FILE}, whose digest starts with {_INCEPTION_DIGEST}",
                remedy="Download it again; another network is read by `encoder_from`",
            )
        from torchmetrics.image.fid import NoTrainInceptionV3

        self._network = NoTrainInceptionV3(
            "inception-v3-compat", [str(_INCEPTION_DIMENSIONS)], str(path), antialias=False
        )

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features; see `fundusgen.evaluation.features.FeatureExtractor`."""
        check_images(images_NSSC)
        with torch.inference_mode():
            # Batches at their own size: the network resizes as the original did.
            return stacked(
                (
                    checked(self._network(batch.to(torch.uint8)), len(batch), self.name)
                    for batch in resized_batches(images_NSSC, images_NSSC.shape[1])
                ),
                _INCEPTION_DIMENSIONS,
            )


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
    content = _content(path, "Correct the path, or download the weights")
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


class VisionTransformer:
    """A ViT's encoder (Dosovitskiy et al. 2021) from weights under timm's names.

    Features are the patch tokens' mean, without the class token: normalised afterwards by
    `fc_norm` where the weights have one, as in RETFound's finetuned networks, and before by `norm`
    otherwise, as in timm with `global_pool="avg", fc_norm=False`.

    Args:
        weights: `cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.N` with norm1, attn.qkv,
            attn.proj, norm2, mlp.fc1, mlp.fc2; `norm` or `fc_norm`. Heads and decoders are left.
        heads: Attention heads; width / 64 where None.

    Attributes:
        size_px: Side of the images it takes.

    Raises:
        ModelError: Weights are missing, unknown or of shapes that do not fit.
    """

    def __init__(self, weights: Mapping[str, Tensor], heads: int | None = None) -> None:
        """Infer the sizes."""
        known = {key: tensor.float() for key, tensor in weights.items() if not _BESIDE.match(key)}
        self._weights = known
        kernel_DCPP = self._get("patch_embed.proj.weight", 4)
        self._width, self._patch_px = kernel_DCPP.shape[0], kernel_DCPP.shape[2]
        tokens = self._get("pos_embed", 3).shape[1] - self._get("cls_token", 3).shape[1]
        side = round(max(tokens, 0) ** 0.5)
        blocks = [int(key.split(".")[1]) for key in known if re.match(r"blocks\.\d+\.", key)]
        self._blocks = max(blocks, default=-1) + 1
        self._heads = heads or max(self._width // _HEAD_WIDTH, 1)
        if side * side != tokens or not tokens or not self._blocks or self._width % self._heads:
            raise ModelError(
                f"a ViT with {tokens} patches, {self._blocks} blocks, width {self._width} and "
                f"{self._heads} heads",
                expected="a square number of patches, blocks, and a width that heads divide",
                remedy="Check the weights, and give `heads` where it is not width / 64",
            )
        self.size_px = side * self._patch_px
        self._final = "fc_norm" if "fc_norm.weight" in known else "norm"
        self._check_names()

    @property
    def description(self) -> str:
        """What the features depend on besides the weights."""
        return f"vit, {self._heads} heads, mean of patches, {self._final}"

    def __call__(self, images_NCSS: Tensor) -> Tensor:
        """Compute the features (N, D) of normalised images."""
        patches_NDSS = conv2d(
            images_NCSS,
            self._weights["patch_embed.proj.weight"],
            self._weights["patch_embed.proj.bias"],
            stride=self._patch_px,
        )
        patches_NTD = patches_NDSS.flatten(2).transpose(1, 2)
        classes_N1D = self._weights["cls_token"].expand(len(images_NCSS), -1, -1)
        tokens_NTD = torch.cat([classes_N1D, patches_NTD], dim=1) + self._weights["pos_embed"]
        for number in range(self._blocks):
            tokens_NTD = self._block(tokens_NTD, f"blocks.{number}.")
        if self._final == "norm":
            return self._normed(tokens_NTD, "norm")[:, 1:].mean(dim=1)
        return self._normed(tokens_NTD[:, 1:].mean(dim=1), "fc_norm")

    def _block(self, tokens_NTD: Tensor, at: str) -> Tensor:
        mixed_NTD = self._attention(self._normed(tokens_NTD, f"{at}norm1"), at)
        tokens_NTD = tokens_NTD + mixed_NTD
        hidden = gelu(self._linear(self._normed(tokens_NTD, f"{at}norm2"), f"{at}mlp.fc1"))
        return tokens_NTD + self._linear(hidden, f"{at}mlp.fc2")

    def _attention(self, tokens_NTD: Tensor, at: str) -> Tensor:
        count, tokens, width = tokens_NTD.shape
        qkv = self._linear(tokens_NTD, f"{at}attn.qkv")
        # Queries, keys and values lie one after the other, each head by head.
        query, key, value = qkv.view(count, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value)
        return self._linear(mixed.transpose(1, 2).reshape(count, tokens, width), f"{at}attn.proj")

    def _normed(self, tokens: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return layer_norm(tokens, (self._width,), weight, bias, _EPSILON)

    def _linear(self, tokens: Tensor, name: str) -> Tensor:
        return linear(tokens, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _get(self, name: str, axes: int) -> Tensor:
        tensor = self._weights.get(name)
        if tensor is None or tensor.ndim != axes:
            raise ModelError(
                f"weights without {name} of {axes} axes",
                expected="a vision transformer under timm's names",
                remedy="Save the encoder's own state, without a prefix such as `model.`",
            )
        return tensor

    def _check_names(self) -> None:
        """Refuse weights that are missing, and any that this forward pass would leave out."""
        layers = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
        parts = [f"blocks.{number}.{layer}" for number in range(self._blocks) for layer in layers]
        parts += ["patch_embed.proj", self._final]
        needed = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
        # Some are trained without a bias of queries, keys and values.
        may_lack = {name for name in needed if name.endswith("attn.qkv.bias")}
        may_have = {"cls_token", "pos_embed", "norm.weight", "norm.bias"}
        missing = needed - may_lack - set(self._weights)
        unknown = set(self._weights) - needed - may_have
        if missing or unknown:
            named = [f"{name} is missing" for name in sorted(missing)]
            named += [f"{name} is not known" for name in sorted(unknown)]
            raise ModelError(
                f"weights that are no plain ViT: {', '.join(named[:4])}",
                expected="the layers of timm's `vit_*_patch*` without variations",
                remedy="Save this network as TorchScript instead",
            )


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


def _content(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}",
            expected="a file with the weights of a network",
            remedy=remedy,
        ) from error


def _listed(rgb: Rgb) -> str:
    return " ".join(f"{value:g}" for value in rgb)
