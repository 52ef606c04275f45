"""The generator of a finished run, read once: what was checked is what leaves."""

import hashlib
from collections.abc import Set
from dataclasses import dataclass

from PIL import Image

from fundusgen.errors import RunError
from fundusgen.models.generator import (
    MODEL_FILE,
    WEIGHTS_FILE,
    Generator,
    SavedGenerator,
    read_saved_generator,
)
from fundusgen.report.pictures import draw_sheet
from fundusgen.run_folder import RunFolder
from fundusgen.training.population import POPULATION_FILE

# The files that images are drawn from: each needs an evaluation of its own.
DRAWS = (WEIGHTS_FILE, POPULATION_FILE)
_COLUMNS = 8


@dataclass(frozen=True, eq=False)
class FinishedGenerator:
    """A generator as it lay there.

    Attributes:
        network: What draws, loaded.
        saved: The same as files; a release takes what draws, and nothing else.
        rest_digest: SHA-256 of the weights that do not draw, which stay; None where they are gone.
        population: Content of the phantoms that patients voted for; None where there are none.
    """

    network: Generator
    saved: SavedGenerator
    rest_digest: str | None
    population: bytes | None

    def leaving(self, judged: Set[str | None]) -> dict[str, bytes]:
        """What goes into a bundle, by name: the network, and phantoms that were judged.

        Guarantee: no weight of a discriminator or an encoder is in it, whatever the run's files
            hold.

        Args:
            judged: SHA-256 of everything that there is an evaluation of.
        """
        files = {WEIGHTS_FILE: self.saved.draws, MODEL_FILE: self.saved.description}
        voted = self.population
        if voted is not None and hashlib.sha256(voted).hexdigest() in judged:
            files[POPULATION_FILE] = voted
        return files

    def undecided(self) -> tuple[str, ...]:
        """The study's conditions whose votes were lost in the noise, as `model.json` has them."""
        said = self.saved.facts.get("undecided")
        names = said if isinstance(said, list) else []
        return tuple(name for name in self.network.study.conditions if name in names)

    def sheet(self) -> Image.Image:
        """A row of images of each condition, by the study's seed."""
        return draw_sheet(self.network, _COLUMNS, self.network.study.seed)


def read_generator(run: RunFolder) -> FinishedGenerator:
    """Read the generator of a run.

    Raises:
        RunError: It is of another study.
        ModelError: It is not whole, or what does not draw is of another generator.
    """
    folder = run.generator
    saved = read_saved_generator(folder)
    if saved.study.study_hash != run.study().study_hash:
        raise RunError(
            f"the generator in {folder} is of another study than {run.study_file}",
            expected="one study: the receipts of one say nothing of the generator of another",
            remedy="Restore the run folder, as its server left it",
        )
    whole = saved.whole_model()
    population = folder / POPULATION_FILE
    try:
        phantoms = population.read_bytes() if population.is_file() else None
    except OSError as error:
        raise RunError(
            f"{error.filename} cannot be read: {error.strerror}",
            expected="the folder of a finished run's generator",
        ) from error
    return FinishedGenerator(
        saved.generator(), saved, whole.rest_digest if whole else None, phantoms
    )
