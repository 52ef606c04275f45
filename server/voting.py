"""The server's side of votes: who stands, how it went, and who is next. All of it public.

What was offered is on disk before any site is asked: a server that resumes must ask for the same
to the last bit, or the sites refuse it as another question. What came of it is there as well, so
that the whole evolution can be followed afterwards.

    votes/encoder.safetensors   the vote space
    votes/poll-NNNN.*           candidates of a vote: features and conditions, and lineages
    votes/tally-NNNN.*          the sum of the sites' noisy votes and statements, and who stood out

Where patients also say how their photographs look, the phantoms that are drawn after the winners
are developed alike (`fundusgen.training.appearance`). Candidates are not: votes choose cameras, and
developing mends what no choice of them can.

Axis letters: N candidates, D features, S side of the image, A numbers of an appearance.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fundusgen.errors import RunError
from fundusgen.federation.weights import Weights
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.phantom.mix import mixed_places
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.privacy.moments import Moments, moments
from fundusgen.run_folder import RunFolder
from fundusgen.storage import write_atomically, write_json
from fundusgen.study import Study
from fundusgen.training.appearance import (
    NUMBERS,
    Development,
    Units,
    appearance_of,
    development,
    units_of,
)
from fundusgen.training.evolution import (
    Generation,
    Parents,
    Result,
    first_generation,
    next_generation,
    parents_of,
    result_of,
)
from fundusgen.training.poll import APPEARANCE, VOTES, poll_arrays, reply_shapes, units_in
from fundusgen.training.population import VotedPopulation, described, generation_of
from fundusgen.training.vote_space import encoded
from server.preparation import ENCODER_FILE

# Phantoms like the winners, from which is measured how they look.
_LOOKED_AT = 512


@dataclass(frozen=True, eq=False)
class SiteVotes:
    """What a site said in a vote, and what is known of it.

    Attributes:
        reply: Its arrays.
        noise_multiplier: Standard deviation of the noise in each of their entries.
        declared_patients: The number of its patients, as it makes it public.
    """

    reply: Weights
    noise_multiplier: float
    declared_patients: int


@dataclass(frozen=True)
class Tally:
    """How a vote went.

    Attributes:
        vote: Its number, from 1.
        deviation: Standard deviation of the noise of all sites on each candidate.
        patients: Declared patients of all sites that voted.
        elected: Candidates that stood out of it.
        undecided: Conditions in which nobody did.
    """

    vote: int
    deviation: float
    patients: int
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
        self._developments: dict[int, Development] = {}

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
            images_NSSC = self._population(generation).images(generation.lineages)
            features = encoded(self._encoder(), images_NSSC)
            units = self._units(images_NSSC if vote == 1 else None)
            poll = poll_arrays(features, generation.conditions_N, self._weights(), units)
            write_atomically(arrays, save(poll))
            write_json(about, described(generation))
        return _arrays(arrays)

    def count(self, vote: int, votes: Sequence[SiteVotes]) -> Tally:
        """Add up what the sites said in noise, and keep what came of it.

        Args:
            vote: Its number.
            votes: Of each site.
        """
        totals = {
            name: np.sum([site.reply[name].astype(np.float64) for site in votes], axis=0)
            for name in reply_shapes(self.study.votes)
        }
        deviation = float(np.sqrt(sum(site.noise_multiplier**2 for site in votes)))
        patients = sum(site.declared_patients for site in votes)
        generation = self._asked(vote)
        result = result_of(totals[VOTES], deviation, generation.conditions_N)
        undecided = tuple(self.study.conditions[place] for place in result.undecided)
        path = self._file("tally", vote)
        write_atomically(path, save(totals))
        elected = int(np.count_nonzero(result.heard_N))
        tally = Tally(vote, deviation, patients, elected, undecided)
        write_json(path.with_suffix(".json"), asdict(tally))
        return tally

    def appearance_noise(self, vote: int) -> float | None:
        """How well this vote and those before tell how photographs look; None where not asked.

        Returns:
            Standard deviation of the noise in a mean, over that among phantoms.

        Raises:
            RunError: The folder lacks a vote.
        """
        return self._moments(vote).mean_deviation if self.study.votes.appearance_share else None

    def population(self, vote: int) -> VotedPopulation:
        """Return what a vote left, from which phantoms like its winners are drawn.

        Raises:
            RunError: The folder lacks the vote.
        """
        asked, result = self._asked(vote), self._result(vote)
        parents = parents_of(self.study, asked, result)
        population = self._population(parents.generation, parents.shares_N)
        if not self.study.votes.appearance_share:
            return population
        if vote not in self._developments:
            # As many healthy eyes as patients may have: diseases change how a picture looks too.
            conditions_N = mixed_places(self.study.conditions, _LOOKED_AT)
            children = population.lineages(conditions_N, self.study.seed)
            appearance_NA = appearance_of(population.images(children))
            self._developments[vote] = development(
                appearance_NA, self._moments(vote), self._known_units()
            )
        return replace(population, development=self._developments[vote])

    def _population(
        self, generation: Generation, shares_N: NDArray[np.float64] | None = None
    ) -> VotedPopulation:
        study, count = self.study, len(generation.lineages)
        shares_N = np.ones(count) if shares_N is None else shares_N
        return VotedPopulation(
            study.conditions, study.image_size, study.votes.variation, Parents(generation, shares_N)
        )

    def _units(self, first_NSSC: NDArray[np.uint8] | None) -> Units | None:
        """The units of all votes: of the candidates of the first, which nobody has voted for."""
        if not self.study.votes.appearance_share:
            return None
        if first_NSSC is None:
            return self._known_units()
        return units_of(appearance_of(first_NSSC))

    def _known_units(self) -> Units:
        """As the sites were sent them."""
        path = self._file("poll", 1)
        try:
            return units_in(_arrays(path))
        except KeyError as error:
            raise _damaged(path) from error

    def _moments(self, vote: int) -> Moments:
        """What all votes up to one tell of how patients' photographs look."""
        total_S, patients, variance = np.zeros(2 * NUMBERS), 0, 0.0
        for earlier in range(1, vote + 1):
            path = self._file("tally", earlier)
            try:
                about = json.loads(path.with_suffix(".json").read_text())
                total_S += _arrays(path)[APPEARANCE]
                patients += int(about["patients"])
                variance += float(about["deviation"]) ** 2
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise _damaged(path) from error
        share = self.study.votes.appearance_share
        return moments(total_S, patients, share, float(np.sqrt(variance)))

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
