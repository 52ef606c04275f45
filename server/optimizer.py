"""The server's optimizer: what is made of the change that the sites ask for. Post-processing.

`adam` is FedAdam of Reddi et al. 2021 ("Adaptive Federated Optimization", Algorithm 2). `adam_bc`
takes the noise's own variance, which is public, out of the second moment (Tang, Shpilevskiy and
Lecuyer 2024, "DP-AdamBC", arXiv 2312.14334, Algorithm 1): under strong noise Adam's second moment
is the noise's everywhere, and all weights then step alike, whether they are told something or not.
"""

import numpy as np

from fundusgen.federation.weights import Weights
from fundusgen.study import FederationSettings

# Reddi et al.'s tau is for changes near one; with SGD at the sites, ours are as small as their
# learning rate.
_BETA_1, _BETA_2, _TAU = 0.9, 0.99, 1e-8
# Share of the noise's variance that is taken to be left of a second moment at least: about the
# error with which a mean over 1 / (1 - beta_2) steps knows it, when there have been that many.
_LEAST_LEFT = 0.1


def server_step(
    federation: FederationSettings,
    old: Weights,
    new: Weights,
    moments: Weights,
    step: int,
    noise_variance: float,
) -> tuple[Weights, Weights]:
    """Apply the server's optimizer to the change that the sites ask for.

    Args:
        federation: Which optimizer, its rate and for how many rounds.
        old: Weights that the sites were sent; more than those of `new` are allowed.
        new: Average of the private part of the replies.
        moments: What the last step returned; empty before the first.
        step: Of the server, from 1.
        noise_variance: Of the noise in each entry of `new`; 0 where it is not known.

    Returns:
        The new weights, and the moments for the next step.
    """
    if federation.server_optimizer == "average":
        return new, {}
    # Constant for the first half, then falling to nothing, so that the noise averages out.
    left = 1 - (step - 1) / federation.rounds
    rate = np.float32(federation.server_learning_rate * min(1.0, 2 * left))
    # Kingma and Ba 2015: without this correction the first steps would be short.
    debias_first, debias_second = 1 - _BETA_1**step, 1 - _BETA_2**step
    noise = noise_variance if federation.server_optimizer == "adam_bc" else 0.0
    weights: Weights = {}
    kept: Weights = {}
    for name, value in new.items():
        zero = np.zeros_like(old[name])
        change = value - old[name]
        first = _BETA_1 * moments.get(f"first/{name}", zero) + (1 - _BETA_1) * change
        second = _BETA_2 * moments.get(f"second/{name}", zero) + (1 - _BETA_2) * change**2
        kept[f"first/{name}"] = first.astype(np.float32)
        kept[f"second/{name}"] = second.astype(np.float32)
        told = np.maximum(second / debias_second - noise, _LEAST_LEFT * noise)
        moved = rate * (first / debias_first) / (np.sqrt(told) + _TAU)
        weights[name] = (old[name] + moved).astype(np.float32)
    return weights, kept


def variance_of_average(noises: list[tuple[float, float]]) -> float:
    """Variance of each entry of an average of replies, as far as it is their noise.

    Args:
        noises: Share of each site, and the standard deviation of the noise in each entry of its
            reply; independent of each other. Shares need not add up to one.
    """
    whole = sum(share for share, _ in noises)
    return float(sum((share / whole * deviation) ** 2 for share, deviation in noises))
