"""Training the vote space: the encoder of polls, on phantoms whose parameters are known.

On the server, beside the prior; public, epsilon 0.

Legend of axes: N images, C channels, S side of the image, D parameters.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fundusgen import pixels as pixels_module
from fundusgen.federation.weights import Weights
from fundusgen.models import activations
from fundusgen.models import encoder as encoder_module
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.phantom import SIMULATOR_VERSION, reading
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.reading import PARAMETERS, parameters_of
from fundusgen.phantom.render import render_as_right
from fundusgen.phantom.workers import ordered_map
from fundusgen.pixels import to_network
from fundusgen.storage import write_atomically
from fundusgen.study import Study
from fundusgen.training.device import quickest_device

# Enough for what can be read at 64 px to be read; more steps win hundredths.
_PHANTOMS, _STEPS, _BATCH, _LEARNING_RATE = 5000, 1200, 64, 2e-3
# Another collection than those of the prior and of the candidates, unless somebody picks it.
_SEED = 0x5EED
_RENDERED = 64

Progress = Callable[[int, int], None]


def vote_space(
    study: Study,
    cache_dir: Path,
    *,
    workers: int = 1,
    device: torch.device | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Weights:
    """Return the weights of the encoder for the study's image size: kept, or trained now.

    Guarantee: depends on the image size and on this code, and on no patient.
    Edge cases: a damaged file in the cache is trained anew and replaced.

    Args:
        study: Gives the image size.
        cache_dir: Folder of encoders by digest; made if absent.
        workers: Processes that draw phantoms.
        device: Where to train; a GPU where there is one, if absent.
        on_progress: Called with phantoms drawn and steps taken, and how many there will be.
    """
    path = cache_dir / f"vote-space-{_digest(study.image_size)[:16]}.safetensors"
    try:
        kept: Weights = load_file(path)
        return kept
    except (OSError, SafetensorError):
        weights = _trained(study.image_size, workers, device or quickest_device(), on_progress)
    write_atomically(path, save(weights))
    return weights


@torch.inference_mode()
def encoded(encoder: ParameterEncoder, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Encode images of right eyes: (N, S, S, 3) uint8 to (N, D) float32."""
    parts = [
        encoder(_pixels(images_NSSC[start : start + _BATCH])).numpy()
        for start in range(0, len(images_NSSC), _BATCH)
    ]
    return np.concatenate(parts)


def _trained(image_size: int, workers: int, device: torch.device, on_progress: Progress) -> Weights:
    total = _PHANTOMS + _STEPS
    images_NSSC = np.empty((_PHANTOMS, image_size, image_size, 3), np.uint8)
    read_ND = np.empty((_PHANTOMS, len(PARAMETERS)))
    starts = range(0, _PHANTOMS, _RENDERED)
    with ordered_map(workers) as apply:
        batches = apply(partial(_drawn, image_size), starts)
        for start, (images, read) in zip(starts, batches, strict=True):
            images_NSSC[start : start + len(images)] = images
            read_ND[start : start + len(read)] = read
            on_progress(start + len(images), total)
    spread_D = read_ND.std(axis=0)
    # What no phantom varies cannot be read; it must not be divided by nothing either.
    standard_ND = (read_ND - read_ND.mean(axis=0)) / np.where(spread_D > 0, spread_D, 1.0)
    targets_ND = torch.from_numpy(standard_ND.astype(np.float32))
    draws = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = ParameterEncoder(image_size, len(PARAMETERS)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, 2 * (1 - step / _STEPS))
        chosen = torch.randint(0, _PHANTOMS, (_BATCH,), generator=draws)
        images = _pixels(images_NSSC[chosen.numpy()]).to(device)
        loss = (model(images) - targets_ND[chosen].to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_progress(_PHANTOMS + step + 1, total)
    return {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}


def _drawn(image_size: int, start: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    phantoms = [
        collection_phantom(number, _SEED, PHANTOM_CONDITIONS)
        for number in range(start, min(start + _RENDERED, _PHANTOMS))
    ]
    right = [render_as_right(phantom, image_size) for phantom in phantoms]
    return np.stack(right), np.stack([parameters_of(phantom) for phantom in phantoms])


def _pixels(images_NSSC: NDArray[np.uint8]) -> torch.Tensor:
    return to_network(torch.from_numpy(np.ascontiguousarray(images_NSSC))).contiguous()


def _digest(image_size: int) -> str:
    sources = [
        hashlib.sha256(Path(str(source)).read_bytes()).hexdigest()
        for source in (
            activations.__file__, encoder_module.__file__, reading.__file__,
            pixels_module.__file__, __file__,
        )
    ]  # fmt: skip
    parts = [SIMULATOR_VERSION, image_size, sources]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
