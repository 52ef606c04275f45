"""Our DP-GAN beside a plain one, on scikit-learn's digits: same network, same budget, one run.

`python -m simulations.benchmarks.digits --out DIR` writes digits.json and digits.md. The digits, 8
by 8 pixels, are images that come with a library. Each is a patient. Both train the same
discriminator at epsilon 10:

- plain: what Opacus' own example does. Its hooks give the gradients of each digit and of a drawn
  one of the same condition together; one step of the generator follows each.
- ours: `PatientSGD` with `GanLoss`, and a generator that waits while the discriminator is worse
  than its floor.

Both have the same steps and sample rate, and every setting that is tried is in the table.
Judged by the Frechet distance in the last layer of a classifier of real digits, and by how well a
classifier does on real digits that was trained on drawn ones alone.

Axes: N images, B batch, C channels, Z noise.
"""

import argparse
import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.accountants.utils import get_noise_multiplier
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.nn import functional

from fundusgen.models.discriminator import Discriminator
from fundusgen.models.gan import GAN
from fundusgen.models.losses import loss_of_generator, loss_on_drawn, loss_on_real
from fundusgen.models.synthesis import Decoder
from fundusgen.privacy.accounting import calibrate_noise_multiplier
from fundusgen.privacy.dpsgd import DPSGDSettings, PatientSGD
from fundusgen.privacy.noise import FastNoise
from fundusgen.privacy.sampling import PoissonPatients
from fundusgen.storage import write_atomically, write_json
from fundusgen.study import GANSettings
from fundusgen.training.generator_steps import GeneratorTraining
from fundusgen.training.patient_loss import GanLoss, PatientViews

EPSILON, DELTA = 10.0, 1e-5
_CLASSES, _LATENT, _TEST, _DRAWN = 10, 16, 360, 2000
_BETAS = (0.5, 0.99)


class _Generator(nn.Module):
    """(B, Z) and (B,) to (B, 1, 8, 8) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_CLASSES, _LATENT)
        self.root = nn.Linear(2 * _LATENT, 32 * 4)
        self.middle = nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, noise_BZ: Tensor, conditions_B: Tensor) -> Tensor:
        root = self.root(torch.cat([noise_BZ, self.embedding(conditions_B)], dim=1))
        features = functional.interpolate(root.relu().view(-1, 32, 2, 2), scale_factor=2.0)
        features = functional.interpolate(self.middle(features).relu(), scale_factor=2.0)
        return torch.tanh(self.last(features))


class _Discriminator(nn.Module):
    """(B, 1, 8, 8) and (B,) to a vote (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.vote = nn.Linear(32 * 4, 1)
        self.embedding = nn.Embedding(_CLASSES, 32 * 4)

    def forward(self, images_BCSS: Tensor, conditions_B: Tensor) -> Tensor:
        features = functional.leaky_relu(self.first(images_BCSS), 0.2)
        features = functional.leaky_relu(self.second(features), 0.2).flatten(1)
        fitting = (features * self.embedding(conditions_B)).sum(1, keepdim=True)
        vote: Tensor = self.vote(features) + fitting / math.sqrt(features.shape[1])
        return vote


class DigitsGAN(GAN):
    """Both networks, small enough for digits."""

    def __init__(self) -> None:
        """Make them with torch's own initialisation."""
        nn.Module.__init__(self)
        self.latent, self.conditions, self.loss = _LATENT, _CLASSES, "logistic"
        self.generator = cast(Decoder, _Generator())
        self.discriminator = cast(Discriminator, _Discriminator())

    @property
    def noise_length(self) -> int:
        """Length of the latent vector."""
        return self.latent

    def draw(self, noise_BN: Tensor, conditions_B: Tensor) -> Tensor:
        """(B, Z) and (B,) to (B, 1, 8, 8)."""
        images: Tensor = self.generator(noise_BN, conditions_B)
        return images


class _Digits:
    """The digits of a half, one a patient, served as `PatientViews` are."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.device = torch.device("cpu")

    def of(self, indices_P: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices_P)
        return self.images[chosen][:, None], self.labels[chosen][:, None]


@dataclass(frozen=True)
class Setting:
    """What is tried.

    Attributes:
        kind: `ours` or `plain`.
        sample_rate: Of the Poisson samples.
        steps: Of the discriminator.
        learning_rate: Of both networks' Adam.
        max_grad_norm: Bound on a digit's gradient.
    """

    kind: str
    sample_rate: float
    steps: int
    learning_rate: float
    max_grad_norm: float


@dataclass(frozen=True)
class Split:
    """Digits in [-1, 1] as (N, 1, 8, 8) and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def digits(seed: int) -> Split:
    """Part the digits at random."""
    found = load_digits()
    images = torch.from_numpy(found.images / 8 - 1).float()[:, None]
    labels = torch.from_numpy(found.target).long()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    test, train = order[:_TEST], order[_TEST:]
    return Split(images[train], labels[train], images[test], labels[test])


def ours(split: Split, setting: Setting, seed: int) -> DigitsGAN:
    """Train with this project's parts."""
    model, count = _fresh(seed), len(split.train)
    private = dict(model.discriminator.named_parameters(prefix="discriminator"))
    noise = FastNoise()
    sgd = PatientSGD(
        private,
        torch.optim.Adam(private.values(), setting.learning_rate, betas=_BETAS),
        DPSGDSettings(
            noise_multiplier=calibrate_noise_multiplier(
                target_epsilon=EPSILON, target_delta=DELTA,
                sample_rate=setting.sample_rate, steps=setting.steps,
            ),
            sample_rate=setting.sample_rate,
            max_grad_norm=setting.max_grad_norm,
            patients=count,
            physical_batch=256,
        ),
        noise,
        PoissonPatients(count, setting.sample_rate, noise),
    )  # fmt: skip
    views = cast(PatientViews, _Digits(split.train, split.train_labels))
    task = GanLoss(model, private, views, drawn=16)
    training = GeneratorTraining(
        model,
        GANSettings(
            kind="gan", generator_steps=1, generator_batch=128, accuracy_floor=0.6,
            generator_learning_rate=setting.learning_rate,
        ),
    )  # fmt: skip
    draws = torch.Generator().manual_seed(seed)
    for _ in range(setting.steps):
        sgd.step(task.loss(), task.load, task.addend)
        training.run(draws)
    return model


def plain(split: Split, setting: Setting, seed: int) -> DigitsGAN:
    """Train as Opacus' example of a GAN does."""
    model, count = _fresh(seed), len(split.train)
    judge = GradSampleModule(model.discriminator)
    with warnings.catch_warnings():
        # Of Renyi DP, which only sizes PRV's grid here.
        warnings.filterwarnings("ignore", "Optimal order is the largest alpha", UserWarning)
        noise_multiplier = get_noise_multiplier(
            target_epsilon=EPSILON, target_delta=DELTA, sample_rate=setting.sample_rate,
            steps=setting.steps, accountant="prv",
        )  # fmt: skip
    optimizer = DPOptimizer(
        torch.optim.Adam(judge.parameters(), setting.learning_rate, betas=_BETAS),
        noise_multiplier=noise_multiplier,
        max_grad_norm=setting.max_grad_norm,
        expected_batch_size=setting.sample_rate * count,
    )  # fmt: skip
    generator_optimizer = torch.optim.Adam(
        model.generator.parameters(), setting.learning_rate, betas=_BETAS
    )
    samples = UniformWithReplacementSampler(
        num_samples=count, sample_rate=setting.sample_rate, steps=setting.steps
    )
    for batch in samples:
        chosen = torch.tensor(batch, dtype=torch.int64)
        labels = split.train_labels[chosen]
        drawn = model.draw(torch.randn(len(chosen), _LATENT), labels)
        optimizer.zero_grad()
        hooked_gradients(judge, split.train[chosen], drawn.detach(), labels)
        optimizer.step()
        judge.disable_hooks()
        labels = torch.randint(_CLASSES, (128,))
        drawn = model.draw(torch.randn(128, _LATENT), labels)
        generator_optimizer.zero_grad()
        with _hooks_on_inputs():
            torch.autograd.backward(loss_of_generator(judge(drawn, labels), "logistic").mean())
        generator_optimizer.step()
        judge.enable_hooks()
    return model


def hooked_gradients(judge: GradSampleModule, real: Tensor, drawn: Tensor, labels: Tensor) -> None:
    """Let Opacus' hooks take the gradient of each digit together with that of a drawn one."""
    with _hooks_on_inputs():
        loss = loss_on_real(judge(real, labels), "logistic").mean()
        loss = loss + loss_on_drawn(judge(drawn, labels), "logistic").mean()
        torch.autograd.backward(loss)


@contextmanager
def _hooks_on_inputs() -> Iterator[None]:
    """Do without torch's warning of hooks on layers that are given digits or labels.

    Those want no gradients. What the hooks find all the same is held against a loop in the tests.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        yield


def judged(model: DigitsGAN, split: Split, seed: int) -> dict[str, float]:
    """Draw digits and measure them."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(_DRAWN) % _CLASSES
    with torch.no_grad():
        drawn = model.draw(torch.randn(_DRAWN, _LATENT, generator=draws), labels)
    features = _features(split, seed)
    pixels, names = drawn.flatten(1).numpy(), labels.numpy()
    test, test_names = split.test.flatten(1).numpy(), split.test_labels.numpy()
    linear = LogisticRegression(max_iter=500).fit(pixels, names)
    with warnings.catch_warnings():
        # Of drawn digits it learns for a fixed time, however much there is to learn.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network = MLPClassifier((64,), max_iter=100, random_state=seed).fit(pixels, names)
    return {
        "frechet": frechet(features(pixels), features(split.train.flatten(1).numpy())),
        "accuracy_linear": float(linear.score(test, test_names)),
        "accuracy_network": float(network.score(test, test_names)),
    }


def _features(split: Split, seed: int) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """The last hidden layer of a classifier of real digits."""
    network = MLPClassifier((32,), max_iter=600, random_state=seed)
    network.fit(split.train.flatten(1).numpy(), split.train_labels.numpy())
    weights, biases = network.coefs_[0], network.intercepts_[0]
    return lambda pixels: np.maximum(pixels @ weights + biases, 0)


def frechet(one_ND: NDArray[np.float64], other_ND: NDArray[np.float64]) -> float:
    """Frechet distance of two Gaussians fitted to features (Heusel et al. 2017)."""
    # Features that are zero for every digit have no variance, and the product no root.
    little = 1e-6 * np.eye(one_ND.shape[1])
    covariance, another = np.cov(one_ND.T) + little, np.cov(other_ND.T) + little
    root = np.real(sqrtm(covariance @ another))
    means = float(np.square(one_ND.mean(0) - other_ND.mean(0)).sum())
    return means + float(np.trace(covariance + another - 2 * root))


def _fresh(seed: int) -> DigitsGAN:
    torch.manual_seed(seed)
    return DigitsGAN()


_TRIED = tuple(
    Setting(kind, rate, steps, learning_rate, bound)
    for kind, (rate, steps), learning_rate, bound in itertools.product(
        ("plain", "ours"), ((0.05, 800), (0.25, 800)), (5e-4, 2e-3), (0.3, 1.0)
    )
)


def measure(settings: Sequence[Setting], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train and judge every setting with every seed."""
    rows = []
    for setting in settings:
        found = []
        for seed in seeds:
            split = digits(seed)
            model = (ours if setting.kind == "ours" else plain)(split, setting, seed)
            found.append(judged(model, split, seed))
        means = {name: float(np.mean([entry[name] for entry in found])) for name in found[0]}
        rows.append({**asdict(setting), **means, "seeds": found})
        print(json.dumps({**asdict(setting), **means}), file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Say it in Markdown, the best of each kind first."""
    order = sorted(rows, key=lambda row: (row["kind"], row["frechet"]))
    lines = [
        "| kind | sample rate | steps | learning rate | clipped at | Frechet distance | accuracy, "
        "linear | accuracy, network |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['kind']} | {row['sample_rate']:g} | {row['steps']} | {row['learning_rate']:g} | "
        f"{row['max_grad_norm']:g} | {row['frechet']:.2f} | {row['accuracy_linear']:.3f} | "
        f"{row['accuracy_network']:.3f} |"
        for row in order
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what was asked for and write the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.digits")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(_TRIED, options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "digits.json", rows)
    write_atomically(options.out / "digits.md", table(rows).encode())
    print(table(rows))


if __name__ == "__main__":
    main()
