"""A vision transformer from its weights alone: RETFound's network, and others under timm's names.

RETFound (Zhou et al. 2023) is a ViT-L/16 trained on retinal photographs as a masked autoencoder
(He et al. 2022). `encoders` reads such files; the forward pass is here, so that no code comes with
the weights.

N images, S side in pixels, C channels, D features, T tokens, P side of a patch.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

from fundusgen.errors import ModelError

# Width of an attention head in ViT-S, -B and -L (Dosovitskiy et al. 2021, table 1).
_HEAD_WIDTH = 64
_EPSILON = 1e-6
# Parts of a checkpoint that its encoder does without: classifiers, and a masked autoencoder's rest.
_BESIDE = re.compile(r"head[._]|decoder|mask_token$")


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
