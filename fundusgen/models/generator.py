"""The finished generator: saved beside a run, loaded anywhere, drawing the same for a seed.

generator.safetensors   the weights that images are drawn with, and no others
model.json              the study, and what is to be said about it
training.safetensors    the rest of the model, a discriminator or an encoder: patients trained it,
                        nobody needs it to draw, and no release holds it

Legend of axes: N images, Z noise, S side of the image in pixels.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save
from torch.nn.utils import convert_conv2d_weight_memory_format

from fundusgen.errors import ModelError
from fundusgen.models.factory import Model, build_model, drawing_prefix, load_weights
from fundusgen.pixels import from_network
from fundusgen.storage import write_atomically
from fundusgen.study import Study, parse_study

FORMAT = 2
# The first had all weights in one file.
_READABLE = (1, FORMAT)
WEIGHTS_FILE, MODEL_FILE = "generator.safetensors", "model.json"
TRAINING_FILE = "training.safetensors"
# In the metadata of the latter: SHA-256 of the former that it belongs to.
_BELONGS_TO = "belongs_to"
Weights = dict[str, NDArray[np.float32]]
# Fixed, not a setting: convolutions of another batch size may round differently, and the same
# seed must give the same pictures.
_BATCH = 16


def save_generator(
    folder: Path,
    study: Study,
    weights: Mapping[str, NDArray[np.float32]],
    facts: Mapping[str, object],
) -> None:
    """Write all that is needed to draw, and apart from it what only training needed.

    Guarantee: the files that a release takes hold no weight of a discriminator or an encoder.

    Args:
        folder: Where to; made if absent.
        study: The study that was trained.
        weights: All weights of its model.
        facts: What else to say about it, such as epsilons; plain JSON.
    """
    drawing, rest = _divided(study, weights)
    draws = save(drawing)
    write_atomically(folder / WEIGHTS_FILE, draws)
    write_atomically(folder / TRAINING_FILE, save(rest, {_BELONGS_TO: _digest(draws)}))
    write_atomically(folder / MODEL_FILE, _described(study, facts))


@dataclass(frozen=True, eq=False)
class WholeModel:
    """All of the model that a generator was taken from.

    Attributes:
        model: In evaluation mode.
        rest_digest: SHA-256 of the weights that only training needed, as safetensors.
    """

    model: Model
    rest_digest: str


@dataclass(frozen=True, eq=False)
class SavedGenerator:
    """A generator as it lay in a folder, read once.

    Attributes:
        folder: Where.
        study: The study that was trained.
        facts: What `model.json` says about it besides.
        draws: The weights that draw and no others, as safetensors, whatever the file held.
        more: What the file held besides, as that of the first format does.
    """

    folder: Path
    study: Study
    facts: Mapping[str, Any]
    draws: bytes
    more: Weights

    @property
    def digest(self) -> str:
        """SHA-256 of what draws: of the file, as long as nobody changes it."""
        return _digest(self.draws)

    @property
    def description(self) -> bytes:
        """Content of `model.json`."""
        return _described(self.study, self.facts)

    def generator(self, device: torch.device | None = None) -> "Generator":
        """What draws.

        Raises:
            ModelError: The weights do not fit.
        """
        return Generator(self.study, load(self.draws), device)

    def whole_model(self) -> WholeModel | None:
        """Read what only training needed, and put it to what draws.

        Returns:
            None where it is not there, as in a release.

        Raises:
            ModelError: It is damaged, or belongs to another generator.
        """
        path = self.folder / TRAINING_FILE
        rest = self.more
        if not rest:
            if not path.exists():
                return None
            rest = _read_rest(path, self.study, self.digest)
        model = build_model(self.study)
        weights = {**load(self.draws), **rest}
        load_weights(model, {name: torch.from_numpy(array) for name, array in weights.items()})
        return WholeModel(model.eval(), _digest(save(rest)))


def read_saved_generator(folder: Path) -> SavedGenerator:
    """Read a generator that `save_generator` wrote.

    Raises:
        ModelError: It is missing, damaged or of a newer format.
        StudyError: Its study is damaged.
    """
    try:
        described = json.loads((folder / MODEL_FILE).read_text())
        weights = load((folder / WEIGHTS_FILE).read_bytes())
        version, study_content = described["format"], described["study"]
        facts = dict(described.get("facts", {}))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"There is no whole generator in {folder}: {' '.join(str(error).split())}",
            expected=f"{MODEL_FILE} and {WEIGHTS_FILE}",
            remedy="Give the folder of a finished run, or its generator folder",
        ) from error
    if version not in _READABLE:
        raise ModelError(
            f"The generator in {folder} has format {version}",
            expected=f"format {' or '.join(map(str, _READABLE))}",
            remedy="Use the version of fundusgen that wrote it, or a newer one",
        )
    study = parse_study(json.dumps(study_content), source=str(folder / MODEL_FILE))
    drawing, more = _divided(study, weights)
    return SavedGenerator(folder, study, facts, save(drawing), more)


def _divided(study: Study, weights: Mapping[str, NDArray[np.float32]]) -> tuple[Weights, Weights]:
    """What draws, and the rest."""
    prefix = drawing_prefix(study)
    drawing = {name: array for name, array in weights.items() if name.startswith(prefix)}
    return drawing, {name: array for name, array in weights.items() if name not in drawing}


def _described(study: Study, facts: Mapping[str, Any]) -> bytes:
    content = {"format": FORMAT, "study": json.loads(study.agreed_json()), "facts": dict(facts)}
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _read_rest(path: Path, study: Study, belongs_to: str) -> Weights:
    remedy = (
        "Copy the folder from its run again; where that cannot be, delete "
        f"{TRAINING_FILE}: then the pictures can be judged, and the rest of the model cannot"
    )
    try:
        content = path.read_bytes()
        weights: Weights = load(content)
        with safe_open(path, "numpy") as file:
            found = (file.metadata() or {}).get(_BELONGS_TO)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} cannot be read: {' '.join(str(error).split())}",
            expected=f"the rest of the model that {WEIGHTS_FILE} is of",
            remedy=remedy,
        ) from error
    if found != belongs_to or _divided(study, weights)[0]:
        raise ModelError(
            f"{path} is of another generator than the {WEIGHTS_FILE} beside it",
            expected="both as one run left them",
            remedy=remedy,
        )
    return weights


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A batch that is still to be drawn: everything random in it is decided.

    Attributes:
        condition: Index of the condition in the model.
        noise_NZ: (N, Z) float32, always of the same N, whatever is wanted of it.
        left_N: (N,) bool: which are shown as left eyes.
        wanted: How many of the batch, from its first.
    """

    condition: int
    noise_NZ: NDArray[np.float32]
    left_N: NDArray[np.bool_]
    wanted: int


@dataclass(frozen=True)
class Drawn:
    """A batch of drawn images.

    Attributes:
        images_NSSC: (N, S, S, 3) uint8 RGB.
        eyes: `R` or `L` for each: patients are shown to the model as right eyes, so a left eye
            is a drawn right eye in the mirror.
    """

    images_NSSC: NDArray[np.uint8]
    eyes: tuple[str, ...]


class Generator:
    """Draws images of a condition.

    Args:
        study: The study whose model draws.
        weights: Of that model; those that only training needs may be missing.
        device: Where to compute.

    Raises:
        ModelError: The weights do not fit.
    """

    def __init__(
        self,
        study: Study,
        weights: Mapping[str, NDArray[np.float32]],
        device: torch.device | None = None,
    ) -> None:
        """Load the weights into the study's model."""
        self.study = study
        self.device = device or torch.device("cpu")
        model = build_model(study)
        prefix = drawing_prefix(study)
        rest = {n: value for n, value in model.state_dict().items() if not n.startswith(prefix)}
        given = {name: torch.from_numpy(array) for name, array in weights.items()}
        load_weights(model, {**rest, **given})
        self._model = model.to(self.device).eval()
        # On processors, convolutions with channels last take two thirds of the time.
        convert_conv2d_weight_memory_format(self._model, torch.channels_last)

    @staticmethod
    def load(folder: Path, device: torch.device | None = None) -> "Generator":
        """Read a generator that `save_generator` wrote; errors as of `read_saved_generator`."""
        return read_saved_generator(folder).generator(device)

    def condition_index(self, condition: str) -> int:
        """Index of a condition in the model.

        Raises:
            ModelError: The generator was not trained for it.
        """
        names = [str(name) for name in self.study.conditions]
        if condition not in names:
            raise ModelError(
                f"This generator does not know the condition '{condition}'",
                expected=f"one of {', '.join(names)}",
            )
        return names.index(condition)

    def draw(self, condition: str, count: int, seed: int) -> Iterator[Drawn]:
        """Draw images, a batch at a time, in constant memory.

        The same condition and seed give the same images on the same machine and torch; a larger
        count goes on where a smaller one ended.

        Args:
            condition: One of the study's conditions.
            count: Number of images, at least 0.
            seed: Any integer from 0.

        Yields:
            At most 16 images at a time, each of a right or left eye with equal chance.

        Raises:
            ModelError: The condition is unknown.
        """
        return map(self.drawn, self.plans(condition, count, seed))

    def plans(self, condition: str, count: int, seed: int) -> Iterator[Plan]:
        """Decide what `draw` will draw, without drawing it.

        Plans can be drawn by several threads at once and give the same images, as each holds its
        own part of the seed's random numbers. Arguments and errors as of `draw`.
        """
        index = self.condition_index(condition)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
        for start in range(0, count, _BATCH):
            noise_NZ = rng.standard_normal((_BATCH, self._model.noise_length), np.float32)
            left_N = rng.random(_BATCH) < 0.5
            yield Plan(index, noise_NZ, left_N, min(_BATCH, count - start))

    def drawn(self, plan: Plan) -> Drawn:
        """Draw one batch."""
        images_NSSC = self._images(plan.noise_NZ, plan.condition)
        images_NSSC[plan.left_N] = images_NSSC[plan.left_N, :, ::-1]
        eyes = tuple("L" if left else "R" for left in plan.left_N[: plan.wanted])
        return Drawn(images_NSSC[: plan.wanted], eyes)

    @torch.inference_mode()
    def _images(self, noise_NZ: NDArray[np.float32], index: int) -> NDArray[np.uint8]:
        conditions_N = torch.full((len(noise_NZ),), index, device=self.device)
        images_NCSS = self._model.draw(torch.from_numpy(noise_NZ).to(self.device), conditions_N)
        images_NSSC: NDArray[np.uint8] = from_network(images_NCSS).cpu().numpy()
        return images_NSSC
