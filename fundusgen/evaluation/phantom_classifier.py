"""Features of a small network that tells phantoms apart: which condition, which camera.

What everyday photographs do not teach: discs, vessels and lesions of fundus images, as far as the
simulator has them. It is trained here, on phantoms of a fixed public seed; a file of this folder
has its weights for the simulator as it is.
No patient is involved; what it does not know of real eyes, it does not see. Of new phantoms at
64 px, where lesions are hardly a pixel wide, it names nearly every camera, and of ten conditions
the right one in 4 of 10.

N images, S side in pixels, C channels, K classes, D features.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import convert_conv2d_weight_memory_format

from fundusgen.evaluation.features import check_images, resized_batches, stacked
from fundusgen.phantom.camera import CAMERA_STYLES
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render, render_as_right
from fundusgen.storage import write_atomically

_DIMENSIONS = 64
_PROBES = 120


@dataclass(frozen=True)
class PhantomTraining:
    """How the network is trained; all of it public.

    Attributes:
        seed: Of phantoms, first weights and order.
        phantoms: How many there are to learn from.
        epochs: Times that each is seen.
        batch: Phantoms of a step.
        learning_rate: Highest of the schedule, which rises and falls once.
        size_px: Side of the images that the network sees.
    """

    seed: int = 20_230_817
    phantoms: int = 6000
    epochs: int = 10
    batch: int = 64
    learning_rate: float = 5e-3
    size_px: int = 64


class PhantomFeatures:
    """The last feature map of the classifier, averaged over the picture: 64 features.

    Args:
        cache_dir: Where a trained network is kept, under a digest of what the simulator draws
            and of the settings. The one with the settings' defaults comes with the package, so
            that everybody's figures are by the same weights; another takes about a minute.
        training: How to train it.
    """

    name = "phantom"
    dimensions = _DIMENSIONS

    def __init__(self, cache_dir: Path, training: PhantomTraining | None = None) -> None:
        """Load the network, or train it and keep it."""
        self._training = training or PhantomTraining()
        recipe = _recipe(self._training)
        self.version = f"classifier 1, {recipe[:12]}"
        file = f"phantom-classifier-{recipe[:20]}.safetensors"
        path = cache_dir / file
        shipped = Path(__file__).with_name(file)
        content = next((p.read_bytes() for p in (shipped, path) if p.exists()), b"")
        network = PhantomClassifier()
        try:
            network.load_state_dict(load(content))
        except (SafetensorError, RuntimeError):
            # None yet, or a damaged one.
            trained = train_classifier(self._training).state_dict()
            content = save({name: tensor.contiguous() for name, tensor in trained.items()})
            write_atomically(path, content)
            network.load_state_dict(load(content))
        self.digest = hashlib.sha256(content).hexdigest()
        self._network = network.eval()
        # On processors, convolutions with channels last are faster.
        convert_conv2d_weight_memory_format(self._network, torch.channels_last)

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features; see `fundusgen.evaluation.features.FeatureExtractor`."""
        check_images(images_NSSC)
        with torch.inference_mode():
            return stacked(
                (
                    self._network.features(scaled(batch))
                    for batch in resized_batches(images_NSSC, self._training.size_px)
                ),
                _DIMENSIONS,
            )


class PhantomClassifier(nn.Module):
    """Four convolutions of stride 2, their average over the picture, and a layer for each label."""

    def __init__(self) -> None:
        """Build it; the weights are those of torch's global generator."""
        super().__init__()
        widths = (3, 24, 32, 48, _DIMENSIONS)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1),
                    nn.GroupNorm(4, after),
                    nn.ReLU(),
                )
                for before, after in pairwise(widths)
            )
        )
        self.condition = nn.Linear(_DIMENSIONS, len(PHANTOM_CONDITIONS))
        self.camera = nn.Linear(_DIMENSIONS, len(CAMERA_STYLES))

    def features(self, images_NCSS: Tensor) -> Tensor:
        """Compute the features (N, D) of images from -1 to 1."""
        maps_NDSS: Tensor = self.body(images_NCSS)
        return maps_NDSS.mean((2, 3))

    def forward(self, images_NCSS: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits (N, K) of the conditions and of the cameras."""
        features_ND = self.features(images_NCSS)
        return self.condition(features_ND), self.camera(features_ND)


def train_classifier(training: PhantomTraining) -> PhantomClassifier:
    """Draw the phantoms and train the network; torch's global generator is left as it was.

    The same settings give the same phantoms anywhere, and the same weights up to rounding.
    """
    images_NCSS, conditions_N, cameras_N = labelled_phantoms(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = PhantomClassifier()
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    steps = training.epochs * -(-len(images_NCSS) // training.batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.learning_rate, total_steps=steps
    )
    order = np.random.default_rng(training.seed)
    for _ in range(training.epochs):
        shuffled = torch.from_numpy(order.permutation(len(images_NCSS)))
        for chosen in torch.split(shuffled, training.batch):
            condition_NK, camera_NK = network(scaled(images_NCSS[chosen].to(torch.float32)))
            loss = cross_entropy(condition_NK, conditions_N[chosen])
            loss = loss + cross_entropy(camera_NK, cameras_N[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network


def labelled_phantoms(training: PhantomTraining) -> tuple[Tensor, Tensor, Tensor]:
    """Draw what the network learns from.

    Returns:
        Images (N, C, S, S) uint8, all right eyes; and, for each, the places of its condition in
        `PHANTOM_CONDITIONS` and of its camera in `CAMERA_STYLES`, (N,) int64.
    """
    styles = list(CAMERA_STYLES)
    images, conditions, cameras = [], [], []
    for number in range(training.phantoms):
        phantom = collection_phantom(number, training.seed, PHANTOM_CONDITIONS)
        images.append(render_as_right(phantom, training.size_px))
        conditions.append(number % len(PHANTOM_CONDITIONS))
        cameras.append(styles.index(phantom.camera.style))
    images_NSSC = torch.from_numpy(np.stack(images))
    # A view: channels stay last in memory, where convolutions are faster.
    return images_NSSC.permute(0, 3, 1, 2), torch.tensor(conditions), torch.tensor(cameras)


def scaled(images_NCSS: Tensor) -> Tensor:
    """Bring images from 0 to 255 to what the network takes, -1 to 1."""
    return images_NCSS / 127.5 - 1


def _recipe(training: PhantomTraining) -> str:
    """Digest of what the weights follow from: the settings, and what the simulator draws.

    Pictures of the collection speak for the simulator, so that a change that moves no pixel keeps
    the network; they are few enough to be drawn each time, and show every condition and camera.
    """
    digest = hashlib.sha256(json.dumps(asdict(training), sort_keys=True).encode())
    for number in range(_PROBES):
        phantom = collection_phantom(number, training.seed, PHANTOM_CONDITIONS)
        digest.update(render(phantom, training.size_px).tobytes())
    return digest.hexdigest()
