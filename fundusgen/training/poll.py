"""A poll: who stands in a vote, and how nearness is measured. Public, made by the server.

It travels as arrays by name in a request of the stage `votes`: the candidates' features and
conditions, the weights of the encoder that made the features, and the units in which patients say
how their photographs look.

Axis letters: N candidates, D features, A numbers of an appearance.
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
from fundusgen.study import Study, VotesStage
from fundusgen.training.appearance import NUMBERS, Units

VOTES, APPEARANCE = "votes", "appearance"
_FEATURES, _CONDITIONS, _ENCODER = "candidates.features", "candidates.conditions", "encoder."
_MEAN, _DEVIATION = "appearance.mean", "appearance.deviation"


@dataclass(frozen=True, eq=False)
class Poll:
    """Who stands in a vote.

    Attributes:
        nearest: For how many candidates an image votes.
        features_ND: float32 features of the candidates.
        conditions_N: int64 places in the study's conditions.
        encoder: Makes the same features of photographs; ready to be used, not to be trained.
        share: Of a ballot in which patients say how their photographs look; 0 for none.
        units: What they say it in; None where the share is 0.
    """

    nearest: int
    features_ND: NDArray[np.float32]
    conditions_N: NDArray[np.int64]
    encoder: ParameterEncoder
    share: float = 0.0
    units: Units | None = None


def poll_arrays(
    features_ND: NDArray[np.float32],
    conditions_N: NDArray[np.int64],
    encoder: Weights,
    units: Units | None = None,
) -> Weights:
    """Pack a poll for its way to the sites; `units` where they are asked for appearances."""
    poll = {
        _FEATURES: features_ND.astype(np.float32),
        _CONDITIONS: conditions_N.astype(np.float32),
        **{f"{_ENCODER}{name}": array for name, array in encoder.items()},
    }
    if units is not None:
        poll[_MEAN] = units.mean_A.astype(np.float32)
        poll[_DEVIATION] = units.deviation_A.astype(np.float32)
    return poll


def units_in(arrays: Mapping[str, NDArray[np.float32]]) -> Units:
    """Read the units of a poll that has them."""
    return Units(arrays[_MEAN].astype(np.float64), arrays[_DEVIATION].astype(np.float64))


def reply_shapes(votes: VotesStage) -> dict[str, tuple[int]]:
    """The arrays of a reply to a poll, by name."""
    shapes = {VOTES: (votes.candidates,)}
    if votes.appearance_share:
        shapes[APPEARANCE] = (2 * NUMBERS,)
    return shapes


def load_poll(study: Study, arrays: Mapping[str, NDArray[np.float32]]) -> Poll:
    """Unpack the poll that the server sent, if it is one that fits the study.

    Raises:
        ModelError: An array is missing, unknown, of another shape or not finite, a candidate has
            no condition of the study, or a unit is not above zero.
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
    if votes.appearance_share:
        shapes |= {_MEAN: (NUMBERS,), _DEVIATION: (NUMBERS,)}
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
    if votes.appearance_share and not (arrays[_DEVIATION] > 0).all():
        raise _unfit("has a unit that is not above zero")
    encoder.load_state_dict({name: torch.from_numpy(arrays[f"{_ENCODER}{name}"]) for name in state})
    return Poll(
        votes.nearest,
        arrays[_FEATURES],
        conditions_N.astype(np.int64),
        encoder.requires_grad_(False).eval(),
        votes.appearance_share,
        units_in(arrays) if votes.appearance_share else None,
    )


def _unfit(found: str) -> ModelError:
    return ModelError(
        f"The poll that came in {found}",
        expected="candidates and encoder as the study sets them",
        remedy="Tell the study lead: server and site may have different versions",
    )
