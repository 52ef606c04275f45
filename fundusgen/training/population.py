"""The phantoms that patients voted for, as a generator of their own.

Kept beside the study's network: lineages and shares, from which any number of new phantoms like the
winners is drawn, at any size, with all the detail that the simulator has and a network smooths out.
Made of what sites said in noise alone, so drawing costs nothing.

Axis letters: N candidates or images, S side in pixels.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import ModelError
from fundusgen.phantom import SIMULATOR_VERSION
from fundusgen.phantom.patients import drawn_eye
from fundusgen.phantom.variation import Lineage, render_lineages
from fundusgen.storage import write_json
from fundusgen.training.appearance import NUMBERS, Development
from fundusgen.training.evolution import Generation, Parents, children_of

POPULATION_FILE = "population.json"
FORMAT = 2
# More than any development that `fundusgen.training.appearance.development` finds.
_MOST_SLOPE, _MOST_OFFSET = 10.0, 1e4


@dataclass(frozen=True, eq=False)
class VotedPopulation:
    """What the last vote left.

    Attributes:
        conditions: Names, in the study's order.
        image_size: Side of the study's images in pixels.
        variation: How far a drawn phantom differs from the winner it descends from.
        parents: Whom the phantoms that are drawn descend from.
        development: What makes them look as patients' photographs do; None for the simulator's own
            looks.
    """

    conditions: tuple[str, ...]
    image_size: int
    variation: float
    parents: Parents
    development: Development | None = None

    def place(self, condition: str) -> int:
        """Return the place of a condition.

        Raises:
            ModelError: The study did not have it.
        """
        if condition not in self.conditions:
            raise ModelError(
                f"Nobody voted on the condition '{condition}'",
                expected=f"one of {', '.join(self.conditions)}",
            )
        return self.conditions.index(condition)

    def lineages(self, conditions_N: NDArray[np.int64], seed: int) -> tuple[Lineage, ...]:
        """Draw children of the winners, one for each condition in a list of places.

        Children of one winner come from one random stream a condition, so a longer list of a
        condition begins with the shorter one.
        """
        drawn: dict[int, Lineage] = {}
        for condition in np.unique(conditions_N):
            rng = np.random.Generator(
                np.random.PCG64(np.random.SeedSequence([seed, 0xC417D, int(condition)]))
            )
            places = np.flatnonzero(conditions_N == condition)
            children = children_of(self.parents, int(condition), len(places), rng)
            drawn |= dict(zip(places.tolist(), children, strict=True))
        return tuple(drawn[place] for place in range(len(conditions_N)))

    def images(
        self,
        lineages: tuple[Lineage, ...],
        *,
        size_px: int | None = None,
        mirror_left: bool = True,
        workers: int = 1,
    ) -> NDArray[np.uint8]:
        """Render phantoms of this population.

        Args:
            lineages: N of them, from `lineages`.
            size_px: Side; the study's where None.
            mirror_left: Show left eyes as right ones, as models are shown all eyes.
            workers: Processes.

        Returns:
            (N, S, S, 3) uint8.
        """
        size_px = size_px or self.image_size
        left_N = np.array([eye_of(lineage) == "L" for lineage in lineages], np.bool_)

        def right(side_px: int) -> NDArray[np.uint8]:
            images_NSSC = render_lineages(lineages, self.variation, side_px, workers=workers)
            images_NSSC[left_N] = images_NSSC[left_N, :, ::-1]
            return images_NSSC

        images_NSSC = right(size_px)
        if self.development is not None:
            small_NSSC = None if size_px == self.image_size else right(self.image_size)
            images_NSSC = self.development.developed(images_NSSC, small_NSSC)
        if not mirror_left:
            images_NSSC[left_N] = images_NSSC[left_N, :, ::-1]
        return images_NSSC


def eye_of(lineage: Lineage) -> str:
    """Return which eye a phantom shows: "L" or "R"."""
    return drawn_eye(lineage.seed, lineage.number)


def save_population(folder: Path, population: VotedPopulation) -> None:
    """Write a population, whole or not at all."""
    write_json(
        folder / POPULATION_FILE,
        {
            "format": FORMAT,
            "simulator": SIMULATOR_VERSION,
            "conditions": list(population.conditions),
            "image_size": population.image_size,
            "variation": population.variation,
            "shares": population.parents.shares_N.tolist(),
            "development": None
            if population.development is None
            else {name: list(value) for name, value in asdict(population.development).items()},
            **described(population.parents.generation),
        },
    )


def load_population(folder: Path) -> VotedPopulation:
    """Read a population that `save_population` wrote.

    Raises:
        ModelError: There is none, it is damaged, or another simulator would draw it differently.
    """
    path = folder / POPULATION_FILE
    try:
        content = json.loads(path.read_text())
        drawn_by = (content["format"], content["simulator"])
        if drawn_by != (FORMAT, SIMULATOR_VERSION):
            raise ModelError(
                f"The population in {folder} has format {drawn_by[0]}, of simulator {drawn_by[1]}",
                expected=f"format {FORMAT}, of simulator {SIMULATOR_VERSION}",
                remedy="Use the version of fundusgen that wrote it",
            )
        population = VotedPopulation(
            tuple(map(str, content["conditions"])),
            int(content["image_size"]),
            float(content["variation"]),
            Parents(generation_of(content), np.array(content["shares"], dtype=np.float64)),
            _development_of(content["development"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(
            f"There is no whole population of phantoms in {folder}: {' '.join(str(error).split())}",
            expected=f"{POPULATION_FILE}, as a study with votes leaves it",
            remedy="Give a finished run of a study with votes",
        ) from error
    parents = population.parents
    if len(parents.shares_N) != len(parents.generation.lineages):
        raise ModelError(
            f"The population in {folder} has {len(parents.shares_N)} shares for "
            f"{len(parents.generation.lineages)} phantoms",
            expected="one of each",
            remedy="Give a finished run of a study with votes",
        )
    return population


def _development_of(content: dict[str, list[float]] | None) -> Development | None:
    """Read what was written of a development.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is of another type.
        ValueError: There are not as many numbers as an appearance has, or one is out of range.
    """
    if content is None:
        return None
    slope_A, offset_A = (np.array(content[name], np.float64) for name in ("slope_A", "offset_A"))
    if not slope_A.shape == offset_A.shape == (NUMBERS,):
        raise ValueError(f"a development has {NUMBERS} slopes and offsets")
    if not (np.abs(slope_A) <= _MOST_SLOPE).all() or not (np.abs(offset_A) <= _MOST_OFFSET).all():
        raise ValueError("a development changes less than that")
    return Development(slope_A, offset_A)


def described(generation: Generation) -> dict[str, object]:
    """Give a generation as plain JSON values."""
    return {
        "candidates": [
            {
                "condition_place": int(place),
                "seed": line.seed,
                "number": line.number,
                "condition": line.condition,
                "camera_style": line.camera_style,
                "variations": list(line.variations),
            }
            for line, place in zip(generation.lineages, generation.conditions_N, strict=True)
        ]
    }


def generation_of(content: dict[str, list[dict[str, object]]]) -> Generation:
    """Read the values that `described` gave.

    Raises:
        KeyError: One is missing.
        TypeError: One is of another type.
        ValueError: One is no number.
    """
    lineages, places = [], []
    for entry in content["candidates"]:
        variations = entry["variations"]
        if not isinstance(variations, list):
            raise TypeError("variations are no list")
        lineages.append(
            Lineage(
                int(str(entry["seed"])),
                int(str(entry["number"])),
                str(entry["condition"]),
                str(entry["camera_style"]),
                tuple(int(seed) for seed in variations),
            )
        )
        places.append(int(str(entry["condition_place"])))
    return Generation(tuple(lineages), np.array(places, dtype=np.int64))
