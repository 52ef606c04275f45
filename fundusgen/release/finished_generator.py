"""The generator of a finished run, read once: what was checked is what leaves."""

import hashlib
import json
from collections.abc import Set
from dataclasses import dataclass

from PIL import Image
from safetensors.numpy import load

from fundusgen.errors import RunError
from fundusgen.models.factory import drawing_prefix
from fundusgen.models.generator import MODEL_FILE, WEIGHTS_FILE, Generator
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
        weights: Content of the file of its weights.
        model: Content of `model.json`.
        population: Content of the phantoms that patients voted for; None where there are none.
    """

    network: Generator
    weights: bytes
    model: bytes
    population: bytes | None

    def leaving(self, judged: Set[str | None]) -> dict[str, bytes]:
        """What goes into a bundle, by name: the network, and phantoms that were judged.

        Args:
            judged: SHA-256 of everything that there is an evaluation of.
        """
        files = {WEIGHTS_FILE: self.weights, MODEL_FILE: self.model}
        voted = self.population
        if voted is not None and hashlib.sha256(voted).hexdigest() in judged:
            files[POPULATION_FILE] = voted
        return files

    def undecided(self) -> tuple[str, ...]:
        """The study's conditions whose votes were lost in the noise, as `model.json` has them."""
        facts = json.loads(self.model).get("facts")
        said = facts.get("undecided") if isinstance(facts, dict) else None
        names = said if isinstance(said, list) else []
        return tuple(name for name in self.network.study.conditions if name in names)

    def sheet(self) -> Image.Image:
        """A row of images of each condition, by the study's seed."""
        return draw_sheet(self.network, _COLUMNS, self.network.study.seed)


def read_generator(run: RunFolder) -> FinishedGenerator:
    """Read the generator of a run.

    Raises:
        RunError: It is of another study, holds more than what draws, or changes while it is read.
        ModelError: It is not whole.
    """
    folder = run.generator
    network = Generator.load(folder)
    if network.study.study_hash != run.study().study_hash:
        raise RunError(
            f"the generator in {folder} is of another study than {run.study_file}",
            expected="one study: the receipts of one say nothing of the generator of another",
            remedy="Restore the run folder, as its server left it",
        )
    paths = [folder / name for name in (WEIGHTS_FILE, MODEL_FILE)]
    population = folder / POPULATION_FILE
    try:
        weights, model = (path.read_bytes() for path in paths)
        phantoms = population.read_bytes() if population.is_file() else None
    except OSError as error:
        raise RunError(
            f"{error.filename} cannot be read: {error.strerror}",
            expected=f"{MODEL_FILE} and {WEIGHTS_FILE} of a finished run",
        ) from error
    # What patients trained and nobody needs to draw would only help attackers.
    prefix = drawing_prefix(network.study)
    if more := [name for name in load(weights) if not name.startswith(prefix)]:
        raise RunError(
            f"{paths[0]} holds {len(more)} weights that do not draw, such as {more[0]}",
            expected=f"weights that begin with {prefix}, as runs of this version leave them",
            remedy="Release it with the version of fundusgen that ran the study",
        )
    return FinishedGenerator(network, weights, model, phantoms)
