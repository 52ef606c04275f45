"""One bounded gradient a patient: the part of DP-SGD that touches patients' data.

A patient's gradient is that of the mean loss over all their views (images and augmentations),
as in De et al. 2022 (arXiv 2204.13650, "augmentation multiplicity"): averaged first, clipped
once. How many images a patient has changes what they say, never how loud they say it.

`torch.func.vmap` of `torch.func.grad` gives the gradients of all patients at once, exactly, for
any differentiable network: no hooks, no layer whose rule someone may have got wrong. Where few
small layers are private, Opacus' hooks are faster (`hooks`); both ways end in the same clipping.

Axes: P patients of a physical batch, K views of a patient, D all entries of all parameters.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fundusgen.errors import PrivacyError
from fundusgen.privacy.hooks import HookedLoss

# The private parameters by name, and one patient's entry of each tensor of the batch (the
# patient axis is gone, so images are KCHW); gives the scalar mean loss over their views.
PatientLoss = Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], Tensor]

# The share of max_grad_norm kept for float32. Sums are taken in float64, but norms are right to
# 1e-5 only, and with one patient more in a batch the others' gradients may change in their last
# bits, as kernels block their sums differently: what Casacuberta et al. 2022 (arXiv 2207.10635)
# warn of. At 1e-6 of a gradient that is covered for a thousand patients a step even if all of it
# pointed one way, and for far more as it does not. It costs a gradient 0.1% of its size.
# It would not cover weights made for the purpose: a network that subtracts equal numbers and
# multiplies what rounding left of them turns the last bits of the others into all of their
# gradient. So DP-SGD asks for batches of one fixed shape, and for networks and sizes in which a
# patient's place makes no difference: `fundusgen.training.places` finds them. And it takes patients
# in a secret order, so that not everybody moves (`fundusgen.privacy.dpsgd.in_secret_order`).
ROUNDING_MARGIN = 2.0**-10
# float32 norms of longer rows lose digits: 7e-5 at 300,000 equal entries, 4e-4 at 3 million.
# Blocks of this many columns also keep their float64 copies in the processor's cache.
_BLOCK = 1 << 14


def per_patient_gradients(
    loss: PatientLoss | HookedLoss,
    parameters: Mapping[str, Tensor],
    batch: tuple[Tensor, ...],
    *,
    fixed_size: int | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Differentiate each patient's loss by itself.

    Guarantee: row p depends on patient p's entries of the batch and on the parameters only. This
        holds as long as `loss` looks at nothing else that depends on patients; to the last bit
        with a `fixed_size` whose places are all alike for this loss on this machine, which
        callers find out (`fundusgen.training.places`); with any other, or none, up to float32's
        rounding, which weights can be made to amplify.
        Rows are exact, not yet bounded, and never leave the site.
    Edge cases: no patients give tensors with an empty first axis, without calling `loss`; a
        parameter that the loss ignores has zero gradient; a loss that draws random numbers
        inside is refused by vmap (pass them in the batch); one view or many is the loss's
        business, as long as it takes their mean.

    Args:
        loss: Mean loss of one patient, a scalar; or a network with hooks, and the losses of a
            whole batch.
        parameters: Private parameters by name, at least one.
        batch: Tensors whose first axis is P; the same P for all, at least one tensor.
        fixed_size: Number of patients to compute with, at least P, whatever P is: the last
            patient is repeated, and the repeats are dropped from the result.

    Returns:
        Gradients by name, each (P, *shape of the parameter), and the losses (P,).

    Raises:
        PrivacyError: The tensors of the batch disagree on the number of patients, or hold more
            than `fixed_size`.
    """
    patients = _patients_in(batch)
    if fixed_size is not None and patients > fixed_size:
        raise PrivacyError(
            "a batch holds more patients than its fixed size",
            expected=f"at most {fixed_size}",
            remedy="Load no more patients than were asked for",
        )
    if patients == 0:
        empty = {name: tensor.new_zeros(0, *tensor.shape) for name, tensor in parameters.items()}
        return empty, next(iter(parameters.values())).new_zeros(0)
    padded = _padded(batch, fixed_size)
    if isinstance(loss, HookedLoss):
        gradients, losses = loss.gradients(parameters, padded)
    else:
        # Detached and without grad mode: no second graph over the frozen part of the network.
        leaves = {name: tensor.detach() for name, tensor in parameters.items()}
        with torch.no_grad():
            gradients, losses = vmap(grad_and_value(loss), in_dims=(None, 0))(leaves, padded)
    return {name: rows[:patients] for name, rows in gradients.items()}, losses[:patients]


def clipped_sum(gradients: Sequence[Tensor], clip_norm: float) -> tuple[list[Tensor], Tensor]:
    """Scale each patient's joint gradient to a norm of at most the bound, and add up.

    Abadi et al. 2016, Algorithm 1, lines 5 and 6, without the noise.

    Guarantee: adding or removing one patient (one row of every tensor) moves the joint sum by an
        L2 norm of at most clip_norm, up to rounding, for which callers keep `ROUNDING_MARGIN`.
        The norm is taken over all tensors together.
    Edge cases: no patients give zero sums; zero rows stay zero; rows below the bound are kept
        as they are. A row that is not finite, or whose norm overflows, adds nothing: an error
        would be an answer without noise, to a server that may have chosen the weights so that
        one patient alone overflows.

    Args:
        gradients: One tensor a parameter, each (P, *shape), float32 or float64.
        clip_norm: The bound, above 0.

    Returns:
        Sums in float64, each of the parameter's shape, and the norms before clipping (P,),
        float64, which are private and not finite where the row is not.
    """
    norms_P = patient_norms(gradients)
    # A zero norm divides to infinity, and the bound of 1 makes that a factor of 1.
    factors_P = (clip_norm / norms_P).clamp_(max=1.0)
    finite_P = torch.isfinite(norms_P)
    if not bool(finite_P.all()):
        # Left out by index: a factor of zero would not undo a NaN.
        factors_P, gradients = factors_P[finite_P], [rows[finite_P] for rows in gradients]
    sums = [_weighted_sum(factors_P, gradient) for gradient in gradients]
    return sums, norms_P


def patient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Give the L2 norm of each patient's gradient over all parameters together.

    Guarantee: exact to a relative error of about 1e-5; of 2**-11 at most for rows made to be added
        up badly, as 2**14 squares are before they are float64. `ROUNDING_MARGIN` covers both.
    Edge cases: no patients give an empty result; a row with NaN gives NaN, one with infinity or
        with entries above 1e19 gives infinity.

    Args:
        gradients: One tensor a parameter, each (P, *shape), at least one.

    Returns:
        Norms (P,), float64.
    """
    squares_P = torch.zeros(len(gradients[0]), dtype=torch.float64, device=gradients[0].device)
    for gradient in gradients:
        for block_PD in _column_blocks(gradient):
            squares_P += torch.linalg.vector_norm(block_PD, dim=1).double().square_()
    return squares_P.sqrt_()


def _weighted_sum(factors_P: Tensor, gradient: Tensor) -> Tensor:
    """Sum over patients in float64: float32 products may be set to bfloat16 process-wide."""
    sums = [block_PD.double().T @ factors_P for block_PD in _column_blocks(gradient)]
    return torch.cat(sums).view(gradient.shape[1:])


def _column_blocks(gradient: Tensor) -> list[Tensor]:
    rows_PD = gradient.reshape(len(gradient), math.prod(gradient.shape[1:]))
    return [
        rows_PD[:, start : start + _BLOCK] for start in range(0, max(rows_PD.shape[1], 1), _BLOCK)
    ]


def _patients_in(batch: tuple[Tensor, ...]) -> int:
    lengths = {len(tensor) if tensor.ndim else -1 for tensor in batch}
    if len(lengths) != 1 or -1 in lengths:
        # Rows that are not one a patient would let a patient be clipped twice.
        raise PrivacyError(
            "the tensors of a batch disagree on the number of patients",
            expected="at least one tensor, each with one entry a patient in its first axis",
            remedy="Give every tensor of the batch the patient axis first",
        )
    return lengths.pop()


def _padded(batch: tuple[Tensor, ...], size: int | None) -> tuple[Tensor, ...]:
    """Repeat the last patient until there are `size` of them."""
    missing = 0 if size is None else size - len(batch[0])
    if missing == 0:
        return batch
    return tuple(torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) for rows in batch)
