"""Gradients of all patients in one backward pass over a whole batch, by Opacus' hooks.

`torch.func.vmap` (see `clipping`) is exact for any network and the fastest way where convolutions
are private. Where only small linear layers are, as a VAE's modulation, most of a backward pass runs
through frozen layers, and an ordinary one with hooks at the private layers takes less: 1.1 times
the plain gradient instead of 1.3 (`simulations.benchmarks.grad_sample`).

Axes: P patients, K views of a patient, B = P * K images, patients first.
"""

import warnings
from collections.abc import Callable, Mapping

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from fundusgen.errors import PrivacyError

# The batch of all images, tensors (B, ...); gives losses (B,) by calling the hooked module.
BatchLosses = Callable[[tuple[Tensor, ...]], Tensor]
# What backward passes are cheap for by hooks: their rule is one product of two vectors an image.
_CHEAP = (nn.Linear, nn.Embedding)


class HookedLoss:
    """A loss whose gradients `gradients` gives for each patient, without `vmap`.

    Guarantee: row p depends on patient p's entries and on the parameters only, if no layer of the
        module mixes the images of a batch (`fundusgen.models.blocks.require_private_layers`), and
        if Opacus' rules for `Linear`, `Conv2d`, `GroupNorm` and `Embedding` are right, which is
        tested against one patient after the other. Rows are exact, not yet bounded.
    Edge cases: hooks are there within `gradients` alone; whatever happens in it, nothing is left
        on the parameters: neither `grad`, which is not private, nor a stale `grad_sample`.

    Args:
        module: The network. Its parameters outside of `parameters` are frozen, for good.
        parameters: The private ones by name: leaf tensors of the module that require gradients.
        losses: Losses of a batch, by calling the module once.

    Raises:
        PrivacyError: A private parameter lies in a layer that Opacus has no rule for, or is none
            of the module's.
    """

    def __init__(
        self, module: nn.Module, parameters: Mapping[str, Tensor], losses: BatchLosses
    ) -> None:
        """Freeze what is not private."""
        unknown = {id(p) for p in parameters.values()} - {id(p) for p in module.parameters()}
        without_rule = [
            f"{name} ({type(layer).__name__})"
            for name, layer in _private_layers(module, parameters).items()
            if type(layer) not in GradSampleModule.GRAD_SAMPLERS
        ]
        if unknown or without_rule:
            raise PrivacyError(
                f"Opacus' hooks cannot reach all private parameters: "
                f"{', '.join(without_rule) or 'some are not of the network'}",
                expected="private parameters in layers that Opacus has a rule for",
                remedy="Set grad_sample_mode: auto in site.yaml",
            )
        private = {id(parameter) for parameter in parameters.values()}
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) in private)
        # Opacus' hooks do not listen to a network that is not in training.
        module.train()
        self._module, self._losses = module, losses
        self._hooked = GradSampleModule(module, loss_reduction="sum")
        # Even where they do not listen, `vmap` over the network fails at them.
        self._hooked.remove_hooks()

    def gradients(
        self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Differentiate the mean loss over each patient's views.

        Guarantee: as the class says.

        Args:
            parameters: Those that the loss was made for.
            batch: Tensors (P, K, ...), at least one patient.

        Returns:
            Gradients by name, each (P, *shape of the parameter), and the losses (P,).

        Raises:
            PrivacyError: There is not one loss for each image, or a private parameter is used past
            its layer.
        """
        patients, views = batch[0].shape[:2]
        self._forget()
        try:
            self._hooked.add_hooks(loss_reduction="sum")
            losses_B = self._losses(tuple(tensor.flatten(0, 1) for tensor in batch))
            if losses_B.shape != (patients * views,):
                raise PrivacyError(
                    f"the losses of {patients * views} images have shape {tuple(losses_B.shape)}",
                    expected="one loss for each image",
                )
            losses_P = losses_B.view(patients, views).mean(1)
            # Else the loss has nothing to do with any private parameter.
            if losses_P.requires_grad:
                with warnings.catch_warnings():
                    # Where what is before a private layer is frozen, as it should be.
                    warnings.filterwarnings("ignore", "Full backward hook is firing")
                    torch.autograd.backward(losses_P.sum())
            rows = {
                name: _rows(parameter, patients, views) for name, parameter in parameters.items()
            }
        finally:
            self._hooked.remove_hooks()
            self._forget()
        return rows, losses_P.detach()

    def _forget(self) -> None:
        """Drop what a pass, finished or not, has left at layers and parameters."""
        for layer in self._module.modules():
            for left in ("activations", "max_batch_len"):
                if hasattr(layer, left):
                    delattr(layer, left)
        for parameter in self._module.parameters():
            parameter.grad = None
            if parameter.requires_grad:
                parameter.grad_sample = None  # type: ignore[attr-defined]
                parameter._forward_counter = 0  # type: ignore[attr-defined]
                if hasattr(parameter, "_current_grad_sample"):
                    del parameter._current_grad_sample


def hooks_are_faster(module: nn.Module, parameters: Mapping[str, Tensor]) -> bool:
    """Whether all private parameters lie in layers that hooks are measured to be faster for."""
    layers = _private_layers(module, parameters).values()
    return all(type(layer) in _CHEAP for layer in layers)


def _private_layers(module: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    private = {id(parameter) for parameter in parameters.values()}
    return {
        name: layer
        for name, layer in module.named_modules()
        if any(id(own) in private for own in layer.parameters(recurse=False))
    }


def _rows(parameter: Tensor, patients: int, views: int) -> Tensor:
    """Add up what hooks found for a patient's images: (P, *shape)."""
    found = parameter.grad_sample  # type: ignore[attr-defined]
    if found is None:
        if parameter.grad is not None:
            raise PrivacyError(
                "a private parameter is used past the layer that it belongs to",
                expected="layers that are called, where hooks see them",
                remedy="Set grad_sample_mode: vmap in site.yaml",
            )
        # The loss has nothing to do with it.
        return parameter.new_zeros(patients, *parameter.shape)
    if found.shape != (patients * views, *parameter.shape):
        raise PrivacyError(
            f"Opacus gave gradients of shape {tuple(found.shape)}",
            expected=f"{(patients * views, *parameter.shape)}: one for each image",
        )
    by_view: Tensor = found.view(patients, views, *parameter.shape)
    return by_view.squeeze(1) if views == 1 else by_view.sum(1)
