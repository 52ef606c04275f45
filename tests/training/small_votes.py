"""Small studies with votes, what a server may ask in them, and what it must not."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from small_study import small_study
from torch import Tensor

from fundusgen.federation.exchange import Request
from fundusgen.federation.weights import Weights
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.study import Study
from fundusgen.training.appearance import Units
from fundusgen.training.poll import poll_arrays

CANDIDATES, NEAREST = 10, 3
STAGE = {"rounds": 2, "candidates": CANDIDATES, "nearest": NEAREST, "appearance_share": 0}
ASKS_BOTH = {**STAGE, "appearance_share": 0.3}
DPSGD = {"steps_per_round": 2, "sample_rate": 0.5, "views_per_patient": 2}


class NoNoise:
    kind = "test"

    def gaussian(self, shape: Sequence[int], standard_deviation: float) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.float64)

    def uniform_uint64(self, count: int) -> None:
        raise NotImplementedError


def votes_study(**changes: object) -> Study:
    stages = {"votes": STAGE, "dpsgd": None}
    return small_study(**{"prior": {}, "stages": stages, "federation": {}, **changes})


def both_stages(**changes: object) -> Study:
    return small_study(**{"prior": {}, "stages": {"votes": STAGE, "dpsgd": DPSGD}, **changes})


def encoder_weights(scale: float = 1.0) -> Weights:
    with torch.random.fork_rng():
        torch.manual_seed(8)
        encoder = ParameterEncoder(32, len(PARAMETERS))
    return {name: value.numpy() * np.float32(scale) for name, value in encoder.state_dict().items()}


def asked_with(
    *,
    features_ND: np.ndarray | None = None,
    conditions_N: np.ndarray | None = None,
    scale: float = 1.0,
    units: Units | None = None,
) -> Weights:
    """What a server may send in a request for votes; with units, for appearances too."""
    if features_ND is None:
        features_ND = np.random.default_rng(2).normal(0, 0.3, (CANDIDATES, len(PARAMETERS)))
    if conditions_N is None:
        conditions_N = np.arange(CANDIDATES) % 2
    return poll_arrays(features_ND, conditions_N, encoder_weights(scale), units)


def poll_for(study: Study, round_number: int = 1, arrays: Weights | None = None) -> Request:
    return Request(
        study.agreed_json(), study.study_hash, round_number, "votes", arrays or asked_with()
    )


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Weights], Weights]:
    return lambda arrays: {**arrays, name: change(arrays[name]).astype(np.float32)}


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def put(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[-1] = value
        return array

    return put


FEATURES, CONDITIONS = "candidates.features", "candidates.conditions"
MALFORMED: dict[str, Callable[[Weights], Weights]] = {
    "nothing": lambda arrays: {},
    "no features": lambda arrays: {k: v for k, v in arrays.items() if k != FEATURES},
    "no encoder": lambda arrays: {k: v for k, v in arrays.items() if "encoder" not in k},
    "something more": lambda arrays: {**arrays, "encoder.more": np.ones(1, np.float32)},
    "a candidate too many": lambda arrays: changed(FEATURES, lambda a: np.vstack([a, a[:1]]))(
        changed(CONDITIONS, lambda a: np.append(a, 0))(arrays)
    ),
    "a candidate too few": lambda arrays: changed(FEATURES, lambda a: a[1:])(
        changed(CONDITIONS, lambda a: a[1:])(arrays)
    ),
    "a feature too few": changed(FEATURES, lambda a: a[:, 1:]),
    "features turned": changed(FEATURES, lambda a: a.T),
    "conditions in a column": changed(CONDITIONS, lambda a: a[:, None]),
    "another encoder": changed("encoder.head.bias", lambda a: a[1:]),
    "features not a number": changed(FEATURES, with_value(np.nan)),
    "features infinite": changed(FEATURES, with_value(-np.inf)),
    "encoder not a number": changed("encoder.head.bias", with_value(np.nan)),
    "encoder infinite": changed("encoder.convs.0.weight", with_value(np.inf)),
    "condition not a number": changed(CONDITIONS, with_value(np.nan)),
    "condition infinite": changed(CONDITIONS, with_value(np.inf)),
    "half a condition": changed(CONDITIONS, with_value(0.5)),
    "nearly a condition": changed(CONDITIONS, with_value(np.nextafter(np.float32(1), 0))),
    "a condition below": changed(CONDITIONS, with_value(-1)),
    "a condition above": changed(CONDITIONS, with_value(2)),
    "a huge condition": changed(CONDITIONS, with_value(2.0**64)),
}  # fmt: skip
