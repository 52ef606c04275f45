"""Ways to a clipped sum of patients' gradients, by what they cost over the plain gradient.

All take turns in one process, at the same network, batch and private parameters, so that whatever
else the machine does hits all alike; each is first held against one patient after the other. What
a step of DP-SGD adds to that (drawn images, noise) is in `dp_step`.

Opacus' ways run through its own modules: hooks with a rule for each kind of layer, the same with
rules made by functorch, and ghost norms (Li et al. 2022, arXiv 2110.05679), which never hold a
patient's gradient and walk backwards twice.

`run` measures in a process of its own, as the allocator must be told before it starts to keep
freed memory.

Axes: P patients, K views, B images of a batch.
"""

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, grad

from fundusgen.environment import KEEP_MEMORY
from fundusgen.models.discriminator import Discriminator
from fundusgen.models.losses import loss_on_real
from fundusgen.models.vae import VAE
from fundusgen.privacy.clipping import clipped_sum, per_patient_gradients
from simulations.benchmarks.child import Row, row, rows_of_child
from simulations.benchmarks.turns import median_ms, ratio, take_turns

IMAGE_SIZE_PX, CONDITIONS, THREADS, TURNS = 64, 8, 2, 9
_CLIP_NORM = 1.0
# float32, summed in another order.
_TOLERANCE = 1e-4

Sums = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A network whose patients' gradients are taken.

    Attributes:
        name: In the table.
        module: Gives one loss an image, (B,), when called with a batch.
        batch: The batch's tensors, patients first, one view each.
        private: Patterns over the names of the parameters that are trained.
    """

    name: str
    module: nn.Module
    batch: tuple[Tensor, ...]
    private: str

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The private parameters."""
        named = self.module.named_parameters()
        return {name: tensor for name, tensor in named if fnmatchcase(name, self.private)}


class RealLoss(nn.Module):
    """A discriminator's loss on real images: (B,)."""

    def __init__(self, width: int) -> None:
        """Make a discriminator of a width."""
        super().__init__()
        self.discriminator = Discriminator(IMAGE_SIZE_PX, CONDITIONS, width)

    def forward(self, images_BCSS: Tensor, conditions_B: Tensor) -> Tensor:
        """Images and conditions to losses."""
        losses_B: Tensor = loss_on_real(
            self.discriminator(images_BCSS, conditions_B), "logistic"
        ).mean(1)
        return losses_B


def run() -> list[Row]:
    """Measure in a fresh process; rows of `simulations.benchmarks.child.row`."""
    return rows_of_child(__name__, "measure", environment={**os.environ, **KEEP_MEMORY})


def measure(patients: int = 64, turns: int = TURNS) -> list[Row]:
    """Measure in this process.

    Args:
        patients: Of a batch.
        turns: How often each way is timed.

    Raises:
        ArithmeticError: A way does not give what one patient after the other gives.
    """
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    rows = []
    for subject in subjects(patients):
        with warnings.catch_warnings():
            # Opacus' hooks do without gradients of the images, and say so at every step.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            warnings.filterwarnings("ignore", "In CPU autocast")
            seconds = take_turns(ways(subject), turns, rehearsals=1)
        plain = seconds.pop("plain")
        rows.append(row(f"{subject.name}: the plain gradient", median_ms(plain), "ms"))
        rows += [
            row(f"{subject.name}: {way} over plain", ratio(taken, plain), "x")
            for way, taken in seconds.items()
        ]
    return rows


def subjects(patients: int) -> list[Subject]:
    """The networks of the two families at their default widths, all of them and the default part.

    Args:
        patients: Of a batch.
    """
    images = torch.rand(patients, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX) * 2 - 1
    conditions_P = torch.randint(0, CONDITIONS, (patients,))
    judge = RealLoss(width=27)
    vae = VAE(image_size=IMAGE_SIZE_PX, conditions=CONDITIONS, width=16, latent=32)
    with torch.no_grad():
        # What begins as zero would keep gradients at zero, which all ways agree on.
        for tensor in (*judge.parameters(), *vae.parameters()):
            tensor.add_(0.02 * torch.randn_like(tensor))
    encoded = (images, conditions_P, torch.randn(patients, 32))
    return [
        Subject("discriminator", judge, (images, conditions_P), "*"),
        Subject("discriminator's votes", judge, (images, conditions_P), "*vote.*"),
        Subject("VAE", vae, encoded, "*"),
        Subject("VAE's modulation", vae, encoded, "decoder.*modulation*"),
    ]


def ways(subject: Subject) -> dict[str, Callable[[], Sums]]:
    """Name the ways to a clipped sum, and the plain gradient, which clips nothing.

    Raises:
        ArithmeticError: A way does not give what one patient after the other gives.
    """
    found: dict[str, Callable[[], Sums]] = {
        "one patient after the other": lambda: _one_by_one(subject),
        "vmap": lambda: _vmap(subject),
        "Opacus' hooks": _hooks(subject, functorch=False),
        "Opacus' functorch": _hooks(subject, functorch=True),
        "Opacus' ghost norms": _ghost(subject),
    }
    exact = found["one patient after the other"]()
    for name, way in found.items():
        far = _distance(way(), exact)
        if not far <= _TOLERANCE:
            raise ArithmeticError(f"{subject.name}: {name} is {far:.1e} away from the exact sum")
    return {"plain": lambda: _plain(subject), **found}


def _plain(subject: Subject) -> Sums:
    trained = subject.parameters
    for name, tensor in subject.module.named_parameters():
        tensor.requires_grad_(name in trained)
    gradients = torch.autograd.grad(
        subject.module(*subject.batch).sum(), list(trained.values()), allow_unused=True
    )
    return {n: g for n, g in zip(trained, gradients, strict=True) if g is not None}


def _one_by_one(subject: Subject) -> Sums:
    gradient_of = grad(_loss(subject))
    leaves = {name: tensor.detach() for name, tensor in subject.parameters.items()}
    patients = [
        gradient_of(leaves, tuple(rows[patient] for rows in subject.batch))
        for patient in range(len(subject.batch[0]))
    ]
    return _clipped({name: torch.stack([p[name] for p in patients]) for name in leaves})


def _vmap(subject: Subject) -> Sums:
    return _clipped(per_patient_gradients(_loss(subject), subject.parameters, subject.batch)[0])


def _hooks(subject: Subject, *, functorch: bool) -> Callable[[], Sums]:
    module = _trained_part(subject)
    hooked = GradSampleModule(module, loss_reduction="sum", force_functorch=functorch)
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def sums() -> Sums:
        hooked.zero_grad()
        hooked(*subject.batch).sum().backward()
        rows = {name: parameter.grad_sample for name, parameter in named.items()}  # type: ignore[attr-defined]
        return _clipped(rows)

    return sums


def _ghost(subject: Subject) -> Callable[[], Sums]:
    module = _trained_part(subject)
    hooked = GradSampleModuleFastGradientClipping(
        module, loss_reduction="sum", max_grad_norm=_CLIP_NORM, use_ghost_clipping=True
    )
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def sums() -> Sums:
        hooked.zero_grad()
        losses_B = hooked(*subject.batch)
        losses_B.sum().backward(retain_graph=True)
        factors_B = (_CLIP_NORM / hooked.get_norm_sample()).clamp(max=1.0)
        hooked.disable_hooks()
        hooked.zero_grad()
        (factors_B * losses_B).sum().backward()
        hooked.enable_hooks()
        return {n: p.grad.double() for n, p in named.items() if p.grad is not None}

    return sums


def _trained_part(subject: Subject) -> nn.Module:
    """A copy, as Opacus leaves hooks behind, in which the private part alone is trained."""
    module = copy.deepcopy(subject.module)
    trained = subject.parameters
    for name, tensor in module.named_parameters():
        tensor.requires_grad_(name in trained)
    return module


def _loss(subject: Subject) -> Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], Tensor]:
    frozen = {name: tensor.detach() for name, tensor in subject.module.named_parameters()}

    def loss(parameters: Mapping[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
        one = tuple(tensor[None] for tensor in patient)
        losses_B: Tensor = functional_call(subject.module, {**frozen, **parameters}, one)
        return losses_B.mean()

    return loss


def _clipped(gradients: Mapping[str, Tensor]) -> Sums:
    sums, _ = clipped_sum(list(gradients.values()), _CLIP_NORM)
    return dict(zip(gradients, sums, strict=True))


def _distance(found: Sums, exact: Sums) -> float:
    """How far two sums are from each other, over the length of the second."""
    apart = sum(float((found[n].double() - exact[n]).square().sum()) for n in exact)
    length = sum(float(exact[n].square().sum()) for n in exact)
    return float((apart / length) ** 0.5)
