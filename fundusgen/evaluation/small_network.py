"""The network of `usefulness`: a few convolutions, learned from the pixels alone.

It sees everything and needs many images, unlike `linear_probe`, which stands beside it.

N images, S side in pixels, C colours, D features, K classes.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from fundusgen.evaluation.classifiers import Diagnose, Examples, Floats
from fundusgen.evaluation.features import check_images, resized_batches

# Twice as wide, it is no better here and takes twice as long.
_WIDTHS = (3, 24, 48, 64, 96)
_GROUPS = 8
# Largest changes of augmentation: what differs between photographs of one eye.
_TURN, _ZOOM, _GAIN, _LIFT = math.radians(10), 0.05, 0.15, 0.05


@dataclass(frozen=True)
class SmallNetwork:
    """Four convolutions of stride 2 and a layer, learned from the pixels alone.

    A fixed number of steps, at a rate that rises and falls once: nothing is chosen, so nothing is
    left out to choose by. Images are drawn by their balanced weights, and changed as photographs
    of one eye differ: upside down (the halves of a retina are alike, and the disc stays on its
    side, unlike in a mirror), turned by up to 10 degrees, a little nearer, redder or darker.

    Attributes:
        steps: Of training.
        batch: Images of a step.
        learning_rate: Highest of the schedule.
        size_px: Side of what it looks at.
        device: Of torch. On others than `cpu`, a seed repeats up to rounding only.
    """

    steps: int = 300
    batch: int = 64
    learning_rate: float = 3e-3
    size_px: int = 64
    device: str = "cpu"

    name = "network"

    def inputs(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring images to its size, (N, S, S, 3) uint8."""
        check_images(images_NSSC)
        if images_NSSC.shape[1] == self.size_px:
            return images_NSSC
        small_NSSC = np.empty((len(images_NSSC), self.size_px, self.size_px, 3), np.uint8)
        start = 0
        for batch_NCSS in resized_batches(images_NSSC, self.size_px):
            rounded_NCSS = batch_NCSS.round().clamp(0, 255).to(torch.uint8)
            small_NSSC[start : start + len(rounded_NCSS)] = rounded_NCSS.permute(0, 2, 3, 1).numpy()
            start += len(rounded_NCSS)
        return small_NSSC

    def learned(self, examples: Examples, seed: int) -> Diagnose:
        """Train from random weights; torch's global generator is left as it was."""
        draws = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(examples.classes)
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.learning_rate, total_steps=self.steps
        )
        labels_N = torch.from_numpy(examples.labels_N)
        weights_N = torch.from_numpy(examples.balanced_weights())
        for _ in range(self.steps):
            chosen = torch.multinomial(weights_N, self.batch, replacement=True, generator=draws)
            images_NCSS = self._placed(examples.inputs_N[chosen.numpy()])
            logits_NK = network(_varied(images_NCSS, draws))
            loss = cross_entropy(logits_NK, labels_N[chosen].to(self.device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        network.eval()
        there_K = np.bincount(examples.labels_N, minlength=examples.classes) > 0
        return lambda inputs_NSSC: self._diagnosed(network, inputs_NSSC, there_K)

    def _placed(self, inputs_NSSC: NDArray[np.uint8]) -> Tensor:
        """Images (N, C, S, S) from 0 to 1, on the device."""
        # A copy: torch takes neither mirrored views nor arrays that are for reading only.
        images_NCSS = torch.from_numpy(np.array(inputs_NSSC)).permute(0, 3, 1, 2).to(self.device)
        return images_NCSS.to(torch.float32) / 255

    def _diagnosed(
        self, network: "_Network", inputs_NSSC: NDArray[np.uint8], there_K: NDArray[np.bool_]
    ) -> Floats:
        rows = [np.empty((0, len(there_K)))]
        with torch.inference_mode():
            for start in range(0, len(inputs_NSSC), self.batch):
                logits_NK = network(self._placed(inputs_NSSC[start : start + self.batch]))
                rows.append(logits_NK.double().cpu().numpy())
        logits_NK = np.where(there_K, np.concatenate(rows), -np.inf)
        powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
        probabilities_NK: Floats = powers_NK / powers_NK.sum(axis=1, keepdims=True)
        return probabilities_NK


class _Network(nn.Module):
    """From images (N, C, S, S) of 0 to 1 to logits (N, K)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # Normalised over groups of channels, not over the batch: photographs and generated images
        # share batches in training, and only photographs are tested on.
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.GroupNorm(_GROUPS, after),
                    nn.ReLU(),
                )
                for before, after in pairwise(_WIDTHS)
            )
        )
        self.head = nn.Linear(2 * _WIDTHS[-1], classes)

    def forward(self, images_NCSS: Tensor) -> Tensor:
        centred_NCSS = (2 * images_NCSS - 1).contiguous(memory_format=torch.channels_last)
        maps_NDSS: Tensor = self.body(centred_NCSS)
        # The mean sees what is everywhere, the largest what is in one place only, as lesions are.
        pooled_ND = torch.cat([maps_NDSS.mean((2, 3)), maps_NDSS.amax((2, 3))], dim=1)
        logits_NK: Tensor = self.head(pooled_ND)
        return logits_NK


def _varied(images_NCSS: Tensor, draws: torch.Generator) -> Tensor:
    """Images of 0 to 1 as other photographs of the same eyes; outside of them it is black."""
    count, device = len(images_NCSS), images_NCSS.device

    def between(low: float, high: float, *shape: int) -> Tensor:
        # Drawn on the processor, so that every device trains on the same images.
        return low + (high - low) * torch.rand(count, *shape, generator=draws)

    turn_N, zoom_N = between(-_TURN, _TURN), between(1 - _ZOOM, 1 + _ZOOM)
    upright_N = between(-1, 1).sign()
    rows = (
        torch.stack([turn_N.cos(), -turn_N.sin() * upright_N, torch.zeros(count)], dim=1),
        torch.stack([turn_N.sin(), turn_N.cos() * upright_N, torch.zeros(count)], dim=1),
    )
    maps_N23 = (zoom_N[:, None, None] * torch.stack(rows, dim=1)).to(device)
    grid_NSS2 = affine_grid(maps_N23, list(images_NCSS.shape), align_corners=False)
    moved_NCSS = grid_sample(images_NCSS, grid_NSS2, align_corners=False)
    gain_NC11 = between(1 - _GAIN, 1 + _GAIN, images_NCSS.shape[1], 1, 1).to(device)
    lift_N111 = between(-_LIFT, _LIFT, 1, 1, 1).to(device)
    # Lifting moves what is lit only: the frame around the eye is black in every photograph.
    lit_NCSS = moved_NCSS * gain_NC11 + lift_N111 * (moved_NCSS > 0)
    return lit_NCSS.clamp(0, 1)
