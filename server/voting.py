"""The server's side of votes: who stands, how it went, and who is next. All of it public.

What was offered is on disk before any site is asked: a server that resumes must ask for the same
to the last bit, or the sites refuse it as another question. What came of it is there as well, so
that the whole evolution can be followed afterwards.

    votes/encoder.safetensors   the vote space
    votes/poll-NNNN.*           candidates of a vote: features and conditions, and lineages
    votes/tally-NNNN.*          the sum of the sites' noisy votes, and who stood out

Axis letters: N candidates, D features, S side of the image.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fundusgen.errors import RunError
from fundusgen.federation.weights import Weights
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.run_folder import RunFolder
from fundusgen.storage import write_atomically, write_json
from fundusgen.study import Study
from fundusgen.training.evolution import (
    Generation,
    Parents,
    Result,
    first_generation,
    next_generation,
    parents_of,
    result_of,
)
from fundusgen.training.poll import VOTES, poll_arrays
from fundusgen.training.population import VotedPopulation, described, generation_of
from fundusgen.training.vote_space import encoded
from server.preparation import ENCODER_FILE


@dataclass(frozen=True)
class Tally:
    """How a vote went.

    Attributes:
        vote: Its number, from 1.
        deviation: Standard deviation of the noise of all sites on each candidate.
        elected: Candidates that stood out of it.
        undecided: Conditions in which nobody did.
    """

    vote: int
    deviation: float
    elected: int
    undecided: tuple[str, ...]


class Voting:
    """The votes of one study, in its run folder.

    Args:
        study: A study with votes.
        run: Its run folder, prepared by `prepare_public`.
    """

    def __init__(self, study: Study, run: RunFolder) -> None:
        """Find what earlier votes left."""
        self.study = study
        self.folder = run.votes

    def poll(self, vote: int) -> Weights:
        """Return what the sites are asked: the same bytes however often.

        Args:
            vote: From 1; all before it are decided.

        Raises:
            RunError: The folder lacks an earlier vote.
        """
        arrays = self._file("poll", vote)
        about = arrays.with_suffix(".json")
        # The JSON is written last: without it there is no poll yet, and nobody was asked.
        if not about.is_file():
            generation = self._generation(vote)
            images = self._population(generation).images(generation.lineages)
            features = encoded(self._encoder(), images)
            poll = poll_arrays(features, generation.conditions_N, self._weights())
            write_atomically(arrays, save(poll))
            write_json(about, described(generation))
        return _arrays(arrays)

    def count(self, vote: int, votes: Sequence[tuple[Weights, float]]) -> Tally:
        """Add up the sites' noisy votes, and keep what came of it.

        Args:
            vote: Its number.
            votes: Reply and noise multiplier of each site.
        """
        total_N = sum(reply[VOTES].astype(np.float64) for reply, _ in votes)
        deviation = float(np.sqrt(sum(noise**2 for _, noise in votes)))
        generation = self._asked(vote)
        result = result_of(np.asarray(total_N), deviation, generation.conditions_N)
        undecided = tuple(self.study.conditions[place] for place in result.undecided)
        tally = Tally(vote, deviation, int(np.count_nonzero(result.heard_N)), undecided)
        path = self._file("tally", vote)
        write_atomically(path, save({VOTES: np.asarray(total_N)}))
        write_json(path.with_suffix(".json"), asdict(tally))
        return tally

    def population(self, vote: int) -> VotedPopulation:
        """Return what a vote left, from which phantoms like its winners are drawn.

        Raises:
            RunError: The folder lacks the vote.
        """
        asked, result = self._asked(vote), self._result(vote)
        parents = parents_of(self.study, asked, result)
        return self._population(parents.generation, parents.shares_N)

    def _population(
        self, generation: Generation, shares_N: NDArray[np.float64] | None = None
    ) -> VotedPopulation:
        study, count = self.study, len(generation.lineages)
        shares_N = np.ones(count) if shares_N is None else shares_N
        return VotedPopulation(
            study.conditions, study.image_size, study.votes.variation, Parents(generation, shares_N)
        )

    def _generation(self, vote: int) -> Generation:
        if vote == 1:
            return first_generation(self.study)
        return next_generation(self.study, self._asked(vote - 1), self._result(vote - 1), vote - 1)

    def _asked(self, vote: int) -> Generation:
        """The generation that a poll was made of."""
        path = self._file("poll", vote).with_suffix(".json")
        try:
            return generation_of(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path) from error

    def _result(self, vote: int) -> Result:
        path = self._file("tally", vote)
        try:
            deviation = float(json.loads(path.with_suffix(".json").read_text())["deviation"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path) from error
        return result_of(_arrays(path)[VOTES], deviation, self._asked(vote).conditions_N)

    def _encoder(self) -> ParameterEncoder:
        encoder = ParameterEncoder(self.study.image_size, len(PARAMETERS))
        encoder.load_state_dict({k: torch.from_numpy(v) for k, v in self._weights().items()})
        return encoder.requires_grad_(False).eval()

    def _weights(self) -> Weights:
        return _arrays(self.folder / ENCODER_FILE)

    def _file(self, what: str, vote: int) -> Path:
        return self.folder / f"{what}-{vote:04d}.safetensors"


def _arrays(path: Path) -> Weights:
    try:
        arrays: Weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error
    return arrays


def _damaged(path: Path) -> RunError:
    return RunError(
        f"{path} is missing or damaged",
        expected="the votes as the server wrote them",
        remedy="Restore the run folder from a copy; without it the votes cannot go on",
    )
