"""Nonlinearities whose value at an element does not depend on where in memory that element lies.

Torch computes `silu` and `softplus` on processors many elements at a time, and what is left over at
the end of a thread's share one by one and by another routine, which rounds differently. So a
patient's activations would depend on their place in a batch, in the last bit, and weights can be
made that turn the last bit into all of a gradient. What is used here rounds alike wherever it is.
"""

import torch
from torch import Tensor


def silu(values: Tensor) -> Tensor:
    """X * sigmoid(x) (Elfwing et al. 2018), by the hyperbolic tangent; of the same shape."""
    half = 0.5 * values
    return half + half * torch.tanh(half)


def softplus(values: Tensor) -> Tensor:
    """log(1 + exp(x)), without overflow; of the same shape."""
    size = values.abs()
    # As the sum of halves, whose slopes at zero are those of the whole.
    return 0.5 * values + 0.5 * size + torch.log1p(torch.exp(-size))
