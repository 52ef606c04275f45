"""A poll: who stands in a vote, and how nearness is measured. Public, made by the server.

It travels as arrays by name in a request of the stage `votes`: the candidates' features and
conditions, and the weights of the encoder that made the features.

Axis letters: N candidates, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fundusgen.errors import ModelError
from fundusgen.federation.weights import Weights
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.study import Study

VOTES = "votes"
_FEATURES, _CONDITIONS, _ENCODER = "candidates.features", "candidates.conditions", "encoder."


@dataclass(frozen=True, eq=False)
class Poll:
    """Who stands in a vote.

    Attributes:
        nearest: For how many candidates an image votes.
        features_ND: float32 features of the candidates.
        conditions_N: int64 places in the study's conditions.
        encoder: Makes the same features of photographs; ready to be used, not to be trained.
    """

    nearest: int
    features_ND: NDArray[np.float32]
    conditions_N: NDArray[np.int64]
    encoder: ParameterEncoder


def poll_arrays(
    features_ND: NDArray[np.float32], conditions_N: NDArray[np.int64], encoder: Weights
) -> Weights:
    """Pack a poll for its way to the sites."""
    return {
        _FEATURES: features_ND.astype(np.float32),
        _CONDITIONS: conditions_N.astype(np.float32),
        **{f"{_ENCODER}{name}": array for name, array in encoder.items()},
    }


def load_poll(study: Study, arrays: Mapping[str, NDArray[np.float32]]) -> Poll:
    """Unpack the poll that the server sent, if it is one that fits the study.

    Raises:
        ModelError: An array is missing, unknown, of another shape or not finite, or a candidate
            has no condition of the study.
        StudyError: The study has no votes.
    """
    votes = study.votes
    encoder = ParameterEncoder(study.image_size, len(PARAMETERS))
    state = encoder.state_dict()
    shapes: dict[str, tuple[int, ...]] = {
        _FEATURES: (votes.candidates, len(PARAMETERS)),
        _CONDITIONS: (votes.candidates,),
        **{f"{_ENCODER}{name}": tuple(value.shape) for name, value in state.items()},
    }
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes:
        wrong = sorted(name for name in shapes.keys() | found.keys()
                       if shapes.get(name) != found.get(name))  # fmt: skip
        raise _unfit(f"differs in {', '.join(name[:64] for name in wrong[:3])}")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise _unfit("holds a value that is not finite")
    conditions_N = arrays[_CONDITIONS]
    if not np.isin(conditions_N, np.arange(len(study.conditions))).all():
        raise _unfit("has a candidate of a condition that the study does not have")
    encoder.load_state_dict({name: torch.from_numpy(arrays[f"{_ENCODER}{name}"]) for name in state})
    return Poll(
        votes.nearest,
        arrays[_FEATURES],
        conditions_N.astype(np.int64),
        encoder.requires_grad_(False).eval(),
    )


def _unfit(found: str) -> ModelError:
    return ModelError(
        f"The poll that came in {found}",
        expected="candidates and encoder as the study sets them",
        remedy="Tell the study lead: server and site may have different versions",
    )
