"""What one patient's loss is, in each family of models: the function that DP-SGD bounds.

Legend of axes: P patients of a physical batch, K views of a patient, Z latent, C conditions,
M images drawn of a condition, D entries of a parameter.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from fundusgen.data.patients import PatientDataset
from fundusgen.models.gan import GAN
from fundusgen.models.vae import VAE
from fundusgen.privacy.clipping import PatientLoss, per_patient_gradients
from fundusgen.privacy.hooks import HookedLoss, hooks_are_faster
from fundusgen.site import GradSampleMode

# Of a GAN's loss, so that a patient's gradient of the parameters that are private by default has a
# norm of about 1, the default of `max_grad_norm`: without, it is 0.7 at phantom hospitals.
GAN_SCALE = 2.0
_DRAWN_AT_ONCE = 64


class PatientViews:
    """Draws a site's patients' images for a step.

    Guarantee: entry p of what is drawn depends on patient p alone and on random numbers that
    nobody outside knows.

    Args:
        patients: The site's patients.
        count: Views of each.
        device: Where to put them.
    """

    def __init__(self, patients: PatientDataset, count: int, device: torch.device) -> None:
        """Make the source of the draws."""
        self.patients, self.count, self.device = patients, count, device
        # A patient more in a sample gives the patients after them other views and latents. That
        # is covered as long as nobody knows the draws: each order of them is then as likely as
        # any other. So they come from a generator of their own that the operating system seeds,
        # and not from torch's global one, which anything in the process may have seeded.
        self.draws = np.random.default_rng()

    def of(self, indices_P: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images (P, K, 3, S, S) in [-1, 1] and conditions (P, K) of patients."""
        images, conditions = self.patients.views(indices_P, self.count, self.draws)
        return images.to(self.device), conditions.to(self.device)


class PatientTask(ABC):
    """What a step of DP-SGD does with a patient.

    Args:
        model: The study's model, as it is when `loss` is called.
        network: The part of it that the private parameters are in; the rest of that is frozen.
        private: Parameters that are trained.
        views: Where images come from.
        mode: How patients' gradients are taken, which changes no more than their last bits.

    Raises:
        PrivacyError: The mode is `hooks`, and hooks cannot reach a private parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        private: Mapping[str, nn.Parameter],
        views: PatientViews,
        mode: GradSampleMode,
    ) -> None:
        """Part the weights into those that are trained and those that are not."""
        self.private, self.views = private, views
        self.frozen = _frozen(model, private)
        hooked = mode == "hooks" or (mode == "auto" and hooks_are_faster(network, private))
        self.hooked = HookedLoss(network, private, self.losses) if hooked else None

    def loss(self) -> PatientLoss | HookedLoss:
        """Make the loss of the next step. No patient is looked at."""
        return self.hooked or self.mean

    @abstractmethod
    def losses(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Losses of all images of a batch at once, (B, ...) to (B,), with the model's weights."""

    @abstractmethod
    def mean(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Mean loss of one patient's views, with these private parameters: a scalar."""

    def addend(self, batch: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
        """Yield what is added to the gradients of a batch, see `Addend`; mostly nothing."""
        yield from ()

    @abstractmethod
    def load(self, indices_P: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Load the physical batch of some patients: one entry a patient in each tensor."""


class VaeLoss(PatientTask):
    """The evidence lower bound, averaged over a patient's views.

    Args:
        model: The VAE.
        private: Its parameters that are trained.
        views: Where images come from.
        kl_weight: Weight of the KL term.
        mode: See `PatientTask`.
    """

    def __init__(
        self,
        model: VAE,
        private: Mapping[str, nn.Parameter],
        views: PatientViews,
        kl_weight: float,
        mode: GradSampleMode = "auto",
    ) -> None:
        """Take the model."""
        self.model, self.kl_weight = model, kl_weight
        super().__init__(model, model, private, views, mode)

    def load(self, indices_P: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Images, conditions and the noise of the reparameterisation."""
        images, conditions = self.views.of(indices_P)
        shape = (*conditions.shape, self.model.latent)
        latent = torch.from_numpy(self.views.draws.standard_normal(shape, dtype=np.float32))
        return images, conditions, latent.to(self.views.device)

    def losses(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Evidence lower bounds, their signs changed."""
        losses_B: Tensor = self.model(*batch, self.kl_weight)
        return losses_B

    def mean(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """The mean of those."""
        weights = {**self.frozen, **parameters}
        losses_K: Tensor = functional_call(self.model, weights, (*batch, self.kl_weight))
        return losses_K.mean()


class GanLoss(PatientTask):
    """The discriminator's loss on a patient's views, and on drawn images of their condition.

    How drawn images enter: before a step, some are drawn of every condition, always as many, and
    the gradient of the discriminator's mean loss on those of a condition is taken: a table with a
    row for each condition, in which no patient has any part. A patient's gradient is that of
    their own images plus the rows of their conditions, and is clipped as a whole. So

    - each patient still adds a vector of norm `max_grad_norm` at most, whatever the numbers of
      patients and of drawn images, and an empty sample adds nothing but noise;
    - the two halves, which mostly cancel, do so before they are clipped and not after;
    - each condition weighs as much among the drawn as it does among the patients, and nobody
      has to know how much that is.

    The loss is that of the game times `GAN_SCALE`.

    Args:
        model: The GAN, as it is when `loss` is called.
        private: The parameters of its discriminator that are trained.
        views: Where images come from.
        drawn: Images drawn of each condition.
        mode: See `PatientTask`.
    """

    def __init__(
        self,
        model: GAN,
        private: Mapping[str, nn.Parameter],
        views: PatientViews,
        *,
        drawn: int,
        mode: GradSampleMode = "auto",
    ) -> None:
        """Take the model; nothing is drawn yet."""
        self.model, self.drawn = model, drawn
        super().__init__(model, model.discriminator, private, views, mode)
        # Apart from the draws of the views, of which there are more or fewer as patients are.
        self.draws = np.random.default_rng()
        self._table_CD: dict[str, Tensor] = {}
        self._checked: dict[str, Tensor] | None = None

    def load(self, indices_P: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Images and conditions."""
        return self.views.of(indices_P)

    def loss(self) -> PatientLoss | HookedLoss:
        """Draw images of every condition and make the table of their gradients."""
        self._table_CD, self._checked = self._checked or self.table()[0], None
        return super().loss()

    def losses(self, batch: tuple[Tensor, ...]) -> Tensor:
        """What the discriminator pays for real images."""
        losses_B: Tensor = self.model(*batch)
        return GAN_SCALE * losses_B

    def mean(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """The mean of those."""
        return self._mean(parameters, batch, drawn=False)

    def addend(self, batch: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
        """The rows of the table of patients' conditions, averaged over their views."""
        _, conditions_PK = batch
        views = conditions_PK.shape[1]
        for name, table in self._table_CD.items():
            rows = table.index_select(0, conditions_PK[:, 0])
            for view in range(1, views):
                rows = rows + table.index_select(0, conditions_PK[:, view])
            yield name, rows / views if views > 1 else rows

    def usable(self) -> bool:
        """Make the first step's table, and tell whether it is finite. No patient is looked at.

        Call it with the weights of the first step.
        """
        self._checked, losses_C = self.table()
        return all(bool(torch.isfinite(part).all()) for part in (losses_C, *self._checked.values()))

    def table(self) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of the loss on images drawn of each condition, and its values.

        Guarantee: depends on the weights and fresh random numbers alone.

        Returns:
            Rows by name, each (C, *shape of the parameter), and losses (C,).
        """
        return per_patient_gradients(
            lambda parameters, batch: self._mean(parameters, batch, drawn=True),
            self.private,
            self._drawn(),
        )

    def _mean(
        self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...], *, drawn: bool
    ) -> Tensor:
        losses: Tensor = functional_call(
            self.model, {**self.frozen, **parameters}, batch, {"drawn": drawn}
        )
        return GAN_SCALE * losses.mean()

    @torch.no_grad()
    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Images (C, M, 3, S, S) and their conditions (C, M)."""
        count = self.model.conditions
        conditions_N = torch.arange(count, device=self.views.device).repeat_interleave(self.drawn)
        shape = (len(conditions_N), self.model.noise_length)
        noise_NZ = torch.from_numpy(self.draws.standard_normal(shape, dtype=np.float32))
        images = torch.cat(
            [
                self.model.draw(noise.to(self.views.device), conditions)
                for noise, conditions in zip(
                    torch.split(noise_NZ, _DRAWN_AT_ONCE),
                    torch.split(conditions_N, _DRAWN_AT_ONCE),
                    strict=True,
                )
            ]
        )
        shape_CM = (count, self.drawn)
        return images.view(*shape_CM, *images.shape[1:]), conditions_N.view(shape_CM)


def _frozen(model: nn.Module, private: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What a model computes with besides its private parameters."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach() for name, value in state.items() if name not in private}
