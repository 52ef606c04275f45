"""Pixels as images have them, and as networks take them."""

import torch
from torch import Tensor


def to_network(pixels: Tensor, device: torch.device | None = None) -> Tensor:
    """Bring images to what every network here takes.

    Args:
        pixels: uint8, (..., S, S, 3), from 0 to 255.
        device: Where to; where they are if absent.

    Returns:
        float32, (..., 3, S, S), from -1 to 1. In memory, channels stay last, where convolutions
        are faster on processors.
    """
    return pixels.movedim(-1, -3).to(device, torch.float32).div_(127.5).sub_(1)


def from_network(images: Tensor) -> Tensor:
    """Bring what a network draws to pixels, the nearest ones.

    Args:
        images: (..., 3, S, S), -1 for black to 1; what lies outside is set to the end of the range.

    Returns:
        uint8, (..., S, S, 3), contiguous.
    """
    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).contiguous()
