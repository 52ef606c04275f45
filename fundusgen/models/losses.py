"""Losses of an adversarial game, one value a vote.

Non-saturating logistic (Goodfellow et al. 2014, section 3) and hinge (Lim and Ye 2017,
arXiv 1705.02894; Miyato et al. 2018). A vote is above 0 for "real".
"""

from torch import Tensor
from torch.nn import functional

from fundusgen.models.activations import softplus
from fundusgen.study import AdversarialLoss


def loss_on_real(votes: Tensor, kind: AdversarialLoss) -> Tensor:
    """What a discriminator pays for its votes on real images; of their shape."""
    return softplus(-votes) if kind == "logistic" else functional.relu(1 - votes)


def loss_on_drawn(votes: Tensor, kind: AdversarialLoss) -> Tensor:
    """What a discriminator pays for its votes on drawn images; of their shape."""
    return softplus(votes) if kind == "logistic" else functional.relu(1 + votes)


def loss_of_generator(votes: Tensor, kind: AdversarialLoss) -> Tensor:
    """What a generator pays for the votes on what it drew; of their shape."""
    return softplus(-votes) if kind == "logistic" else -votes
