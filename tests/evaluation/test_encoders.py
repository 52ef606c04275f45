"""Encoders from files: a ViT against torch's own layers, TorchScript, and what is refused."""

import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from fundusgen.errors import ModelError
from fundusgen.evaluation.encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NetworkFeatures,
    encoder_from,
)
from fundusgen.evaluation.inception import InceptionFeatures
from fundusgen.evaluation.vit import VisionTransformer

WIDTH, HEADS, DEPTH, PATCH, SIDE = 32, 4, 3, 8, 4
SIZE = PATCH * SIDE
Weights = dict[str, Tensor]


class Pooled(nn.Module):
    """A convolution and its average: what a TorchScript file should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.convolution(images)
        return maps.mean((2, 3))


class Unpooled(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.convolution(images)
        return maps


class Endless(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.convolution(images)
        return maps.mean((2, 3)) / 0


@pytest.fixture
def images_NSSC() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (18, 40, 40, 3)).astype(np.uint8)


def vit_weights(final: str = "fc_norm", seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    weights = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, SIDE * SIDE + 1, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
        f"{final}.weight": draw(WIDTH),
        f"{final}.bias": draw(WIDTH),
        "head.weight": draw(5, WIDTH),
        "decoder_blocks.0.norm1.weight": draw(7),
        "mask_token": draw(1, 1, 7),
    }
    for number in range(DEPTH):
        for layer, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            weights[f"blocks.{number}.{layer}.weight"] = draw(rows, columns)
            weights[f"blocks.{number}.{layer}.bias"] = draw(rows)
        for layer in ("norm1", "norm2"):
            weights[f"blocks.{number}.{layer}.weight"] = draw(WIDTH)
            weights[f"blocks.{number}.{layer}.bias"] = draw(WIDTH)
    return weights


def slow_vit(weights: Weights, images_NCSS: Tensor, final: str) -> Tensor:
    """By torch's own encoder layers; patches cut by hand."""
    kernel = weights["patch_embed.proj.weight"].reshape(WIDTH, -1)
    tokens = [
        images_NCSS[:, :, row : row + PATCH, column : column + PATCH].reshape(len(images_NCSS), -1)
        @ kernel.T
        + weights["patch_embed.proj.bias"]
        for row in range(0, SIZE, PATCH)
        for column in range(0, SIZE, PATCH)
    ]
    classes = weights["cls_token"].expand(len(images_NCSS), 1, WIDTH)
    x = torch.cat([classes, torch.stack(tokens, dim=1)], dim=1) + weights["pos_embed"]
    for number in range(DEPTH):
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
        ).eval()
        names = {
            "self_attn.in_proj_weight": "attn.qkv.weight",
            "self_attn.in_proj_bias": "attn.qkv.bias",
            "self_attn.out_proj.weight": "attn.proj.weight",
            "self_attn.out_proj.bias": "attn.proj.bias",
            "linear1.weight": "mlp.fc1.weight",
            "linear1.bias": "mlp.fc1.bias",
            "linear2.weight": "mlp.fc2.weight",
            "linear2.bias": "mlp.fc2.bias",
        }
        names |= {
            f"{norm}.{kind}": f"{norm}.{kind}"
            for norm in ("norm1", "norm2")
            for kind in ("weight", "bias")
        }
        layer.load_state_dict(
            {theirs: weights[f"blocks.{number}.{timm}"] for theirs, timm in names.items()}
        )
        x = layer(x)
    norm = nn.LayerNorm(WIDTH, 1e-6)
    norm.load_state_dict({kind: weights[f"{final}.{kind}"] for kind in ("weight", "bias")})
    pooled: Tensor = norm(x[:, 1:].mean(1)) if final == "fc_norm" else norm(x)[:, 1:].mean(1)
    return pooled


def scripted(network: nn.Module, path: Path) -> Path:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.script(network).save(str(path))
    return path


def from_script(path: Path, **settings: object) -> NetworkFeatures:
    """Torch warns that its TorchScript is on the way out; users see that, and so do tests."""
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        return encoder_from(path, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("final", ["norm", "fc_norm"])
@torch.no_grad()
def test_a_vit_is_that_of_torch_layers(final: str) -> None:
    weights = vit_weights(final)
    network = VisionTransformer(weights, HEADS)
    images_NCSS = torch.randn((3, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    assert network.size_px == SIZE
    torch.testing.assert_close(
        network(images_NCSS), slow_vit(weights, images_NCSS, final), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_images_are_resized_and_normalised_before(
    tmp_path: Path, images_NSSC: NDArray[np.uint8]
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(vit_weights(), path)
    extractor = encoder_from(path, architecture="vit", heads=HEADS)
    resized_NCSS = nn.functional.interpolate(
        torch.from_numpy(images_NSSC).permute(0, 3, 1, 2).float(),
        (SIZE, SIZE),
        mode="bilinear",
        antialias=True,
    )
    mean, std = (torch.tensor(rgb).view(3, 1, 1) for rgb in (IMAGENET_MEAN, IMAGENET_STD))
    expected_ND = slow_vit(vit_weights(), (resized_NCSS / 255 - mean) / std, "fc_norm")
    np.testing.assert_allclose(extractor(images_NSSC), expected_ND, rtol=1e-3, atol=1e-4)
    assert extractor.dimensions == WIDTH
    assert extractor(images_NSSC[:0]).shape == (0, WIDTH)


def test_torchscript_is_run_as_it_was_saved(tmp_path: Path, images_NSSC: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    network = Pooled()
    extractor = from_script(scripted(network, tmp_path / "My Net.v2.pt"), size_px=40)
    mean, std = (torch.tensor(rgb).view(3, 1, 1) for rgb in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        images_NCSS = torch.from_numpy(images_NSSC).permute(0, 3, 1, 2) / 255
        expected_ND = network((images_NCSS - mean) / std)
    np.testing.assert_allclose(extractor(images_NSSC), expected_ND, rtol=1e-4, atol=1e-5)
    assert extractor.name == f"my-net-v2-{extractor.digest[:8]}"
    assert "torchscript, 40 px, mean 0.485 0.456 0.406" in extractor.version


def test_other_weights_or_normalisation_are_another_extractor(tmp_path: Path) -> None:
    found = []
    for folder, seed in (("a", 0), ("b", 1)):
        path = tmp_path / folder / "same.safetensors"
        path.parent.mkdir()
        save_file(vit_weights(seed=seed), path)
        found.append(encoder_from(path, architecture="vit", heads=HEADS))
    half = encoder_from(path, architecture="vit", heads=HEADS, mean=(0.5, 0.5, 0.5))
    other_heads = encoder_from(path, architecture="vit", heads=HEADS * 2)
    assert found[0].name != found[1].name
    assert len({found[1].version, half.version, other_heads.version}) == 3


@pytest.mark.parametrize("network", [Unpooled, Endless])
def test_what_is_no_row_of_finite_numbers_is_refused(
    tmp_path: Path, network: type[nn.Module]
) -> None:
    path = scripted(network(), tmp_path / "bad.ts")
    with pytest.raises(ModelError, match=r"\(N, D\)|not finite"):
        from_script(path, size_px=16)


def test_a_network_for_another_size_is_refused(tmp_path: Path) -> None:
    path = scripted(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), tmp_path / "eight.pt")
    assert from_script(path, size_px=8).dimensions == 2
    with pytest.raises(ModelError, match="16 px"):
        from_script(path, size_px=16)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    zipped, bare, other = tmp_path / "zip.pt", tmp_path / "bare.pt", tmp_path / "model.pth"
    torch.save({"model": Trap()}, zipped)
    for path in (bare, other):
        path.write_bytes(pickle.dumps(Trap()))
    for path in (zipped, bare):
        with pytest.raises(ModelError, match="no TorchScript"):
            from_script(path)
    with pytest.raises(ModelError, match="pickled checkpoints can run any code"):
        encoder_from(other)
    assert not marker.exists()


def test_what_a_file_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    lacking, more, odd = (vit_weights() for _ in range(3))
    del lacking["blocks.1.mlp.fc1.weight"]
    more["blocks.0.ls1.gamma"] = torch.ones(WIDTH)
    odd["pos_embed"] = torch.zeros(1, SIDE * SIDE, WIDTH)
    for weights, match in (
        (lacking, r"blocks\.1\.mlp\.fc1\.weight is missing"),
        (more, r"blocks\.0\.ls1\.gamma is not known"),
        (odd, "15 patches"),
        ({"encoder.cls_token": torch.zeros(1)}, "patch_embed"),
    ):
        path = tmp_path / "weights.safetensors"
        save_file(weights, path)
        with pytest.raises(ModelError, match=match):
            encoder_from(path, architecture="vit", heads=HEADS)


def test_weights_without_bias_of_queries_are_a_vit_too() -> None:
    weights = vit_weights()
    zero = dict(weights)
    for number in range(DEPTH):
        zero[f"blocks.{number}.attn.qkv.bias"] = torch.zeros(3 * WIDTH)
        del weights[f"blocks.{number}.attn.qkv.bias"]
    images_NCSS = torch.ones((1, 3, SIZE, SIZE))
    torch.testing.assert_close(
        VisionTransformer(weights, HEADS)(images_NCSS), VisionTransformer(zero, HEADS)(images_NCSS)
    )


def test_the_architecture_is_asked_for_where_the_file_does_not_say_it(tmp_path: Path) -> None:
    path = tmp_path / "retfound.safetensors"
    save_file(vit_weights(), path)
    with pytest.raises(ModelError, match='Give `architecture="vit"`'):
        encoder_from(path)
    with pytest.raises(ModelError, match="'resnet'"):
        encoder_from(path, architecture="resnet")
    with pytest.raises(ModelError, match="carries its own"):
        encoder_from(scripted(Pooled(), tmp_path / "net.pt"), architecture="vit")
    path.write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        encoder_from(path, architecture="vit")
    with pytest.raises(ModelError, match="cannot be read"):
        encoder_from(tmp_path / "absent.pt")


def test_inception_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", sys)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModelError, match="pip install torch-fidelity"):
        InceptionFeatures()


def test_inception_opens_no_other_weights_than_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ("torch_fidelity", "torchvision"):
        monkeypatch.setitem(sys.modules, package, sys)
    with pytest.raises(ModelError, match="cannot be read"):
        InceptionFeatures(tmp_path / "absent.pth")
    other = tmp_path / "other.pth"
    other.write_bytes(b"pickled")
    with pytest.raises(ModelError, match="starts with 6726825d"):
        InceptionFeatures(other)
