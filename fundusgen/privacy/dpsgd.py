"""DP-SGD with the patient as its unit.

One step, after Abadi et al. 2016 (Algorithm 1): draw a Poisson sample of patients, take one
clipped gradient of each, add them up, add Gaussian noise once, divide by the public expected
batch size, and hand the result to any torch optimizer. Sampling is in `sampling`, gradients and
clipping in `clipping`, noise in `noise`; here they become a step that cannot be taken by halves.

The step is Opacus' `DPOptimizer` (1.6): it queues the physical batches of a logical one, adds
noise after the last, and divides. Replaced are its clipping (sums in float64, and nothing of
gradients that are not finite) and its noise (its secure mode needs a dead package, and adds in
float32).

What it costs is accounted elsewhere: one step is one subsampled Gaussian event with
`noise_multiplier` and `sample_rate`, and is reserved in the ledger before it is taken.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor

from fundusgen.errors import PrivacyError
from fundusgen.privacy.clipping import (
    ROUNDING_MARGIN,
    PatientLoss,
    clipped_sum,
    per_patient_gradients,
)
from fundusgen.privacy.hooks import HookedLoss
from fundusgen.privacy.noise import NoiseSource, add_gaussian_noise, rounding_sensitivity
from fundusgen.privacy.sampling import PoissonPatients

# Given patients' indices, loads one entry a patient, in their order, in each tensor.
LoadBatch = Callable[[NDArray[np.int64]], tuple[Tensor, ...]]
# Given a batch, yields what is added to the patients' gradients before they are clipped: the name
# of a parameter, and a row for each patient that depends on their entry and public numbers alone.
Addend = Callable[[tuple[Tensor, ...]], Iterable[tuple[str, Tensor]]]


@dataclass(frozen=True)
class DPSGDSettings:
    """The public numbers of a DP-SGD run. None of them may be computed from patients' data.

    Guarantee: with these, a step is a Poisson-subsampled Gaussian mechanism with
        `noise_multiplier` and `sample_rate`; its unit is the patient, its neighbours differ by
        adding or removing one patient.
    Edge cases: a noise multiplier of 0 is refused, as it protects nobody; so are NaN, infinity
        and numbers out of range. A sample rate of 1 is no subsampling, and allowed.

    Attributes:
        noise_multiplier: Standard deviation of the noise on the sum, over max_grad_norm.
        sample_rate: Probability of each patient to be in a step, above 0 and at most 1.
        max_grad_norm: Bound on a patient's gradient, in L2 norm over all private parameters,
            from 1e-6 to 1e6.
        patients: The number of patients the site *declares*, at least 1. Not the true number:
            neighbours differ in it, and it scales every update, so the true one would leak.
        physical_batch: Patients that are held in memory at a time; every batch is computed with
            exactly as many, so that one patient more does not change the shape of the others'.
            One of whose places all are alike: see `fundusgen.training.places`. Changes no more
            than the last bits of a result.

    Raises:
        PrivacyError: A number is out of range.
    """

    noise_multiplier: float
    sample_rate: float
    max_grad_norm: float
    patients: int
    physical_batch: int = 32

    def __post_init__(self) -> None:
        """Refuse what would weaken the guarantee; comparisons are false for NaN."""
        _check("noise_multiplier", self.noise_multiplier, 1e-6, 1e6)
        _check("sample_rate", self.sample_rate, 2.0**-64, 1.0)
        _check("max_grad_norm", self.max_grad_norm, 1e-6, 1e6)
        _check("patients", self.patients, 1, 2**53, whole=True)
        _check("physical_batch", self.physical_batch, 1, 2**31, whole=True)

    @property
    def expected_batch_size(self) -> float:
        """The public divisor of every step: sample_rate times declared patients."""
        return self.sample_rate * self.patients

    @property
    def noise_deviation(self) -> float:
        """The standard deviation of the noise on the sum of gradients."""
        return self.noise_multiplier * self.max_grad_norm

    def clip_norm(self, parameter_count: int) -> float:
        """Give the norm that gradients are clipped to: the bound, less all rounding.

        Guarantee: gradients clipped to this have, computed in float32 and rounded to the
            noise's lattice, a sensitivity of at most max_grad_norm. See `ROUNDING_MARGIN` for
            how many patients that covers.
        Edge cases: raises where rounding would take more than half of the bound, which needs
            about a million million parameters or a noise multiplier of thousands.

        Args:
            parameter_count: Entries of all private parameters together.

        Returns:
            The norm, slightly below max_grad_norm.

        Raises:
            PrivacyError: Too many parameters for so much noise.
        """
        lattice = rounding_sensitivity(parameter_count, self.noise_deviation)
        if lattice > self.max_grad_norm / 2:
            raise PrivacyError(
                f"{parameter_count} private parameters under a noise multiplier of "
                f"{self.noise_multiplier} leave nothing of a gradient after rounding",
                expected="rounding below half of max_grad_norm",
                remedy="Train fewer private parameters or lower the noise multiplier",
            )
        return self.max_grad_norm * (1 - ROUNDING_MARGIN) - lattice

    def noise_to_signal(self, parameter_count: int) -> float:
        """Give the noise's norm over the largest possible gradient's, in one step.

        Guarantee: depends on public numbers alone.
        Edge cases: 0 parameters give 0. Above about 3 nothing will be learned.

        Args:
            parameter_count: Entries of all private parameters together.

        Returns:
            noise_multiplier * sqrt(parameter_count) / (sample_rate * patients).
        """
        return self.noise_multiplier * math.sqrt(parameter_count) / self.expected_batch_size


@dataclass(frozen=True)
class StepReport:
    """What a step saw. NOT private: it depends on patients without noise and stays at the site.

    Guarantee: none. No field may be sent, nor decide anything that is sent.
    Edge cases: an empty sample has 0 patients and None for what it cannot know.

    Attributes:
        patients: Patients in the sample.
        clipped_fraction: Share of them whose gradient was clipped, 0 to 1.
        median_norm: Median norm of their gradients before clipping.
        mean_loss: Mean of their losses.
        not_finite: Patients of the sample whose gradient was not finite, and so added nothing.
    """

    patients: int
    clipped_fraction: float | None
    median_norm: float | None
    mean_loss: float | None
    not_finite: int = 0


class PatientSGD:
    """Takes DP-SGD steps on some parameters of a network; all others stay as they are.

    Guarantee: the parameters after n steps are the output of n adaptively composed
        Poisson-subsampled Gaussian mechanisms with `settings.noise_multiplier` and
        `settings.sample_rate`; unit: patient; neighbours: one patient added or removed with all
        their images and labels. Assumes that `load_batch` gives each patient one entry that
        depends on that patient alone, that `loss` and `addend` read no other patient data, that
        frozen parameters and settings do not depend on this site's data except through accounted
        mechanisms, and that nobody outside sees `StepReport`, memory, the time that a step
        takes, or whether it failed.
    Edge cases: an empty sample takes its noise step like any other, and a patient whose gradient
        is not finite adds nothing to it (see `clipped_sum`). Whatever goes wrong before
        the noise is on, nothing of the step is applied; and after any failure every later step
        is refused, as sampling again after looking at patients is no Poisson sample.

    Args:
        parameters: The private parameters by name: leaf tensors, float32 or float64, that
            require gradients.
        optimizer: Any torch optimizer over exactly these tensors.
        settings: The public numbers.
        noise: Where the noise comes from.
        sampler: Where the samples come from, with the same sample rate.

    Raises:
        PrivacyError: The optimizer holds other tensors, or the sample rates differ.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        settings: DPSGDSettings,
        noise: NoiseSource,
        sampler: PoissonPatients,
    ) -> None:
        """Check that what is accounted is what will be done."""
        _check_parameters(parameters, optimizer)
        if sampler.sample_rate != settings.sample_rate:
            raise PrivacyError(
                f"the sampler's rate is {sampler.sample_rate}, "
                f"the settings' is {settings.sample_rate}",
                expected="one sample_rate, as it is accounted for",
                remedy="Build the sampler with the settings' sample_rate",
            )
        self.settings = settings
        self._parameters = dict(parameters)
        self._optimizer = _PatientOptimizer(optimizer, settings, noise)
        self._sampler, self._noise = sampler, noise
        self._usable = True

    def step(
        self,
        loss: PatientLoss | HookedLoss,
        load_batch: LoadBatch,
        addend: Addend | None = None,
    ) -> StepReport:
        """Draw a sample of patients and take one step on it.

        Guarantee: one subsampled Gaussian mechanism, as the class says.
        Edge cases: as the class says; neither `load_batch` nor `addend` is called for an empty
            sample.

        Args:
            loss: Mean loss of one patient over their views, a scalar; or a network with hooks.
            load_batch: Loads the physical batch of the patients with the given indices.
            addend: Adds to patients' gradients what is known of them without differentiating;
                bounded together with them.

        Returns:
            A report that stays at the site.

        Raises:
            PrivacyError: A batch does not hold one entry a patient, or an earlier step failed.
        """
        if not self._usable:
            raise PrivacyError(
                "an earlier step failed",
                expected="steps that were all taken in full",
                remedy="Count this round as spent, and begin a new one",
            )
        self._usable = False
        try:
            report = self._take_step(loss, load_batch, addend)
        finally:
            self._optimizer.forget()
        self._usable = True
        return report

    def _take_step(
        self, loss: PatientLoss | HookedLoss, load_batch: LoadBatch, addend: Addend | None
    ) -> StepReport:
        indices = in_secret_order(self._sampler.draw(), self._noise)
        size = self.settings.physical_batch
        starts = range(0, len(indices), size) or range(1)
        norms, losses = [], []
        for start in starts:
            batch = _load(load_batch, indices[start : start + size])
            gradients, losses_P = per_patient_gradients(
                loss, self._parameters, batch, fixed_size=size
            )
            if addend is not None and len(losses_P):
                _add(gradients, addend(batch))
            for name, parameter in self._parameters.items():
                parameter.grad_sample = gradients[name]  # type: ignore[attr-defined]
            del gradients
            self._optimizer.signal_skip_step(do_skip=start != starts[-1])
            self._optimizer.step()
            self._optimizer.zero_grad()
            norms.append(self._optimizer.norms_P)
            losses.append(losses_P)
        clip_norm = self._optimizer.clip_norm
        return _report(torch.cat(norms), torch.cat(losses), clip_norm)


class _PatientOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with this package's clipping and noise."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: DPSGDSettings, noise: NoiseSource
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=settings.noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            expected_batch_size=settings.expected_batch_size,
            loss_reduction="mean",
        )
        self.clip_norm = settings.clip_norm(sum(p.numel() for p in self.params))
        self.norms_P = torch.zeros(0, dtype=torch.float64)
        self._noise_deviation = settings.noise_deviation
        self._noise = noise

    def clip_and_accumulate(self) -> None:
        sums, self.norms_P = clipped_sum([p.grad_sample for p in self.params], self.clip_norm)
        for parameter, summed in zip(self.params, sums, strict=True):
            if parameter.summed_grad is None:
                parameter.summed_grad = summed
            else:
                parameter.summed_grad += summed

    def add_noise(self) -> None:
        parameters = self.params
        # One draw for all parameters: a draw for each would cost more than the noise itself.
        joint_D = torch.cat([parameter.summed_grad.flatten() for parameter in parameters])
        noised_D = add_gaussian_noise(joint_D, self._noise_deviation, self._noise)
        pieces = torch.split(noised_D, [parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)

    def forget(self) -> None:
        """Drop whatever is left of a step, finished or not."""
        self._step_skip_queue.clear()
        self._is_last_step_skipped = False
        self.zero_grad(set_to_none=True)


def in_secret_order(indices: NDArray[np.int64], noise: NoiseSource) -> NDArray[np.int64]:
    """Shuffle a sample, so that one patient more moves at most one other patient.

    A second line of defence. With batches whose places are alike (`fundusgen.training.places`) the
    order of a sample changes nothing. Should they be unlike all the same, an order by index would
    move everybody after a new patient by a place, and the sum by as much as the network makes of
    that.

    Guarantee: every order is equally likely, whatever the sample; nobody outside knows it. If then
        a patient's gradient depends on them and on their place, and on nobody else, one patient
        more moves the clipped sum by at most three times the clipping norm, whatever the network:
        put the new patient at a place drawn from all, and whom that displaces at the new last
        place. That is as likely as any order of one patient more; all others stay, the new
        patient adds one norm, and the displaced one changes by two at most.
    Edge cases: none or one come back as they are. Equal words, of which there are two with a
        probability of n**2 / 2**65, leave their patients in the order of the sample.

    Args:
        indices: Of the sampled patients.
        noise: Where the randomness comes from.

    Returns:
        The same indices, shuffled.

    Raises:
        PrivacyError: The noise source gave too few words.
    """
    words = noise.uniform_uint64(len(indices))
    if words.shape != indices.shape:
        raise PrivacyError(
            "the noise source gave the wrong number of words",
            expected="one word a patient",
            remedy="Use SecureNoise or FastNoise",
        )
    shuffled: NDArray[np.int64] = indices[np.argsort(words, kind="stable")]
    return shuffled


def _load(load_batch: LoadBatch, indices: NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Load a physical batch, and hold it to one entry a patient."""
    if len(indices) == 0:
        return (torch.zeros(0),)
    batch = load_batch(indices)
    if any(tensor.ndim == 0 or len(tensor) != len(indices) for tensor in batch):
        # More entries than patients would clip a patient twice, and double the sensitivity.
        raise PrivacyError(
            "a batch does not hold one entry a patient",
            expected="tensors whose first axis is as long as the list of patients",
            remedy="Give a patient's images a second axis of views instead of rows of their own",
        )
    return batch


def _add(gradients: dict[str, Tensor], rows: Iterable[tuple[str, Tensor]]) -> None:
    """Add rows to patients' gradients, a row to each patient's."""
    for name, added in rows:
        if added.shape != gradients[name].shape:
            # Broadcast, one patient's row would be added to everyone's.
            raise PrivacyError(
                f"what is added to the gradients of {name!r} has shape {tuple(added.shape)}",
                expected=f"{tuple(gradients[name].shape)}: a row for each patient",
            )
        gradients[name] = gradients[name] + added


def _report(norms_P: Tensor, losses_P: Tensor, clip_norm: float) -> StepReport:
    if len(norms_P) == 0:
        return StepReport(0, None, None, None)
    return StepReport(
        patients=len(norms_P),
        clipped_fraction=(norms_P > clip_norm).double().mean().item(),
        median_norm=norms_P.median().item(),
        mean_loss=losses_P.double().mean().item(),
        not_finite=int((~torch.isfinite(norms_P)).sum()),
    )


def _check_parameters(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Hold the optimizer to the private parameters: others would move without any noise."""
    optimized = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    wanted = [id(tensor) for tensor in parameters.values()]
    if not wanted or sorted(map(id, optimized)) != sorted(wanted) or len(set(wanted)) < len(wanted):
        raise PrivacyError(
            f"the optimizer holds {len(optimized)} tensors, and not exactly the "
            f"{len(wanted)} private parameters",
            expected="one optimizer over the private parameters, each named once",
            remedy="Build the optimizer from parameters.values()",
        )
    for name, tensor in parameters.items():
        exact = tensor.dtype in (torch.float32, torch.float64)
        if not (exact and tensor.is_leaf and tensor.requires_grad):
            raise PrivacyError(
                f"private parameter {name!r} cannot be trained",
                expected="a float32 or float64 leaf tensor that requires gradients",
                remedy="Call requires_grad_(True) on the private parameters, and train them in "
                "float32",
            )


def _check(name: str, value: float, least: float, most: float, *, whole: bool = False) -> None:
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    # NaN fails the comparison too.
    if not (right_type and least <= value <= most):
        kind = "whole number" if whole else "number"
        raise PrivacyError(
            f"{name} is {value!r}",
            expected=f"a {kind} from {least:g} to {most:g}",
            remedy=f"Set {name} in the study's privacy settings",
        )
