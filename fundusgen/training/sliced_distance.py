"""How far drawn images are from real ones, without a network: patches on random lines.

Sliced Wasserstein distance over the levels of a Laplacian pyramid, as in Karras et al. 2018
("Progressive growing of GANs", section 5): coarse levels see colour and layout, the finest sees
how sharp the drawing is. Cheap enough to be looked at while a model trains.

Legend of axes: N images, C channels, S side of the image, P patches, L lines.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fundusgen.models.blocks import doubled

_SMALLEST_PX, _PATCH_PX = 16, 7
_PATCHES_PER_IMAGE, _LINES = 64, 64


def sliced_distance(drawn_NCSS: Tensor, real_NCSS: Tensor, seed: int) -> float:
    """Compare two collections of as many images.

    Args:
        drawn_NCSS: (N, 3, S, S).
        real_NCSS: (N, 3, S, S); its patches give the unit.
        seed: Of the places of the patches and the directions of the lines.

    Returns:
        Mean distance of the patches' coordinates on random lines, in standard deviations of the
        real patches' values, averaged over the levels; 0 for equal collections.
    """
    draws = torch.Generator().manual_seed(seed)
    distances = [
        _distance(drawn, real, draws)
        for drawn, real in zip(_pyramid(drawn_NCSS), _pyramid(real_NCSS), strict=True)
    ]
    return sum(distances) / len(distances)


def _distance(drawn_NCSS: Tensor, real_NCSS: Tensor, draws: torch.Generator) -> float:
    count, channels, size = real_NCSS.shape[0], real_NCSS.shape[1], real_NCSS.shape[-1]
    rows, columns = (
        torch.randint(size - _PATCH_PX + 1, (count, _PATCHES_PER_IMAGE), generator=draws)
        for _ in range(2)
    )
    lines_VL = torch.randn(channels * _PATCH_PX**2, _LINES, generator=draws)
    lines_VL = lines_VL / lines_VL.norm(dim=0)
    real = _patches(real_NCSS.cpu(), rows, columns)
    mean, spread = real.mean((0, 2, 3), keepdim=True), real.std((0, 2, 3), keepdim=True)
    sides = [
        (((patches - mean) / spread.clamp_min(1e-6)).flatten(1) @ lines_VL).sort(dim=0).values
        for patches in (_patches(drawn_NCSS.cpu(), rows, columns), real)
    ]
    return float((sides[0] - sides[1]).abs().mean())


def _patches(images_NCSS: Tensor, rows_NP: Tensor, columns_NP: Tensor) -> Tensor:
    """Cut the patches out that begin at some rows and columns: (N * P, C, 7, 7)."""
    offset = torch.arange(_PATCH_PX)
    images = torch.arange(len(images_NCSS))[:, None, None, None]
    rows = rows_NP[:, :, None, None] + offset[:, None]
    columns = columns_NP[:, :, None, None] + offset
    return images_NCSS.permute(0, 2, 3, 1)[images, rows, columns].flatten(0, 1).movedim(-1, 1)


def _pyramid(images_NCSS: Tensor) -> list[Tensor]:
    """From fine to coarse: what each level adds to the next, and the coarsest itself."""
    levels = []
    while images_NCSS.shape[-1] > _SMALLEST_PX:
        coarser = functional.avg_pool2d(images_NCSS, 2)
        levels.append(images_NCSS - doubled(coarser))
        images_NCSS = coarser
    return [*levels, images_NCSS]
