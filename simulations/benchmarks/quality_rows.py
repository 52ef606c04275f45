"""The rows of the quality benchmark: ways to make images, each named and made by a function.

To add a row, write a maker (`quality_context`) and enter it in `ROWS`. Every row that begins with
a prior begins with that of seed 0, as studies of any seed do that do not say otherwise; the seeds
of those rows vary what comes after. The rows of the priors alone vary the prior.

N images, S side in pixels, C colours.
"""

import numpy as np
from numpy.typing import NDArray

from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render_as_right
from simulations.benchmarks.quality_context import Context, RowKind
from simulations.benchmarks.quality_gan_makers import (
    gan_at_sites,
    gan_from_scratch,
    gan_in_one_place,
    gan_ordinary,
    gan_prior,
    gan_tuned,
    gan_tuned_often,
    gan_voted,
    gan_voted_and_tuned,
    gan_without_noise,
)
from simulations.benchmarks.quality_makers import (
    dpsgd_alone,
    from_scratch,
    prior_alone,
    refitted,
    tuned,
    voted,
)

# Rows that targets speak of: no patient seen; the generator's model trained on patients alone,
# without noise, which is what privacy and phantoms are held against.
RAW_PHANTOMS, FROM_SCRATCH = "phantoms", "from_scratch"
GAN_PRIOR, GAN_WITHOUT_NOISE = "gan_prior", "gan_free"
GAN_IN_ONE_PLACE, GAN_ORDINARY = "gan_central", "gan_ordinary"
PRETRAINED_GANS = ("gan_dpsgd", "gan_dpsgd_often", "gan_votes", "gan_votes_dpsgd")
# Apart from the seeds of priors and classifiers, so that no row is judged on what it has seen.
_PHANTOM_SEED = 770_000


def phantoms(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw phantoms of all cameras, without having seen a patient."""
    images = []
    for number in range(len(context.labels_N)):
        phantom = collection_phantom(number, _PHANTOM_SEED + seed, context.labels_N)
        images.append(render_as_right(phantom, context.size_px))
    return np.stack(images)


ROWS: dict[str, RowKind] = {
    RAW_PHANTOMS: RowKind(phantoms, title="raw phantoms"),
    "prior": RowKind(prior_alone, title="the prior alone"),
    "votes": RowKind(voted, private=True, title="votes: the phantoms that won"),
    "votes_refit": RowKind(refitted, private=True, title="votes, model refitted"),
    "votes_dpsgd": RowKind(tuned, private=True, title="votes, refitted, DP-SGD"),
    "votes_free": RowKind(voted, title="votes without noise: the phantoms that won"),
    "votes_dpsgd_free": RowKind(tuned, title="votes, refitted, SGD, all without noise"),
    "dpsgd": RowKind(dpsgd_alone, private=True, title="DP-SGD from scratch"),
    FROM_SCRATCH: RowKind(from_scratch, title="same model on patients, no privacy"),
    GAN_PRIOR: RowKind(gan_prior, title="GAN: the prior alone"),
    "gan_dpsgd": RowKind(gan_tuned, private=True, title="GAN: prior, DP-SGD"),
    "gan_dpsgd_often": RowKind(
        gan_tuned_often, private=True, title="GAN: prior, DP-SGD, 4 steps a round"
    ),
    "gan_sites": RowKind(
        gan_at_sites, private=True, title="GAN: prior, DP-SGD, generator trained at the sites"
    ),
    "gan_votes": RowKind(gan_voted, private=True, title="GAN: votes, refitted"),
    "gan_votes_dpsgd": RowKind(
        gan_voted_and_tuned, private=True, title="GAN: votes, refitted, DP-SGD"
    ),
    "gan_scratch": RowKind(gan_from_scratch, private=True, title="GAN: DP-SGD from scratch"),
    GAN_WITHOUT_NOISE: RowKind(
        gan_without_noise, title="GAN: prior, all of it federated, no noise"
    ),
    GAN_IN_ONE_PLACE: RowKind(
        gan_in_one_place, title="GAN: prior, the same steps in one place, no noise"
    ),
    GAN_ORDINARY: RowKind(
        gan_ordinary, title="GAN: prior, ordinary training in one place, no privacy"
    ),
}
