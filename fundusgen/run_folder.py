"""The run folder: where a study's server writes, and what is where in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fundusgen.errors import RunError
from fundusgen.storage import write_json
from fundusgen.study import Study, load_study

State = Literal["prepared", "running", "finished", "failed"]


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Attributes:
        path: The folder itself.
    """

    path: Path

    @property
    def study_file(self) -> Path:
        """The study with every setting spelled out."""
        return self.path / "study.yaml"

    @property
    def environment_file(self) -> Path:
        """Versions and machine the run was made with."""
        return self.path / "environment.json"

    @property
    def status_file(self) -> Path:
        """State of the run as its server last knew it."""
        return self.path / "status.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a round."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """`round-NNNN.safetensors` with its JSON."""
        return self.path / "checkpoints"

    @property
    def prior(self) -> Path:
        """What the model learned from phantoms before the first round."""
        return self.path / "prior.safetensors"

    @property
    def votes(self) -> Path:
        """The encoder of the votes, and for each vote who stood and how it went."""
        return self.path / "votes"

    @property
    def refitted(self) -> Path:
        """What the model draws after it was refitted on the winners of the votes."""
        return self.samples / "refitted.png"

    @property
    def samples(self) -> Path:
        """`round-NNNN.png`, drawn from the moving average."""
        return self.path / "samples"

    @property
    def film(self) -> Path:
        """The first picture of each row of the samples, over the rounds."""
        return self.path / "film.png"

    @property
    def receipts(self) -> Path:
        """`SITE/NNNNNN.json` by the number of the receipt, as the sites signed them."""
        return self.path / "receipts"

    @property
    def known_sites(self) -> Path:
        """`SITE.pub`, the public keys of the sites that may take part."""
        return self.path / "known-sites"

    @property
    def generator(self) -> Path:
        """The generator, for use without this folder."""
        return self.path / "generator"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def sites(self) -> Path:
        """Site folders, in a simulation only."""
        return self.path / "sites"

    def study(self) -> Study:
        """Read the study of this run.

        Raises:
            RunError: There is none.
            StudyError: It is damaged.
        """
        if not self.study_file.is_file():
            raise RunError(
                f"There is no study in {self.path}",
                expected="a run folder with study.yaml",
                remedy="Make one with `fundusgen simulate STUDY.yaml --out DIR`",
            )
        return load_study(self.study_file)

    def write_status(self, state: State, *, message: str = "") -> None:
        """Say what became of the run; how far it is, its checkpoints say."""
        write_json(self.status_file, {"state": state, "message": message})

    def status(self) -> dict[str, Any]:
        """Read what `write_status` wrote; state `prepared` where nothing was."""
        if not self.status_file.is_file():
            return {"state": "prepared", "message": ""}
        status: dict[str, Any] = json.loads(self.status_file.read_text())
        return status

    def metrics(self) -> list[dict[str, Any]]:
        """Read one entry a round, in order; a line cut short by a crash is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text().splitlines()
        entries = [entry for line in lines if (entry := _parsed(line)) is not None]
        latest = {entry["round"]: entry for entry in entries}
        return [latest[number] for number in sorted(latest)]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry
