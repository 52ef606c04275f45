"""The page of a study's keys says of each what the code does."""

import json
import re
from pathlib import Path

from pydantic import BaseModel

from fundusgen.study import (
    DPSGDStage,
    EvaluationSettings,
    FederationSettings,
    GANSettings,
    PartitionRule,
    PhantomSite,
    PriorSettings,
    PrivacySettings,
    SimulationSettings,
    Study,
    VAESettings,
    VotesStage,
    parse_study,
)

PAGE = Path(__file__).parents[2] / "docs" / "study.md"
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.+) \|$", re.MULTILINE)
PARTS: dict[str, tuple[type[BaseModel], ...]] = {
    "": (Study,),
    "model.": (VAESettings, GANSettings),
    "prior.": (PriorSettings,),
    "stages.votes.": (VotesStage,),
    "stages.dpsgd.": (DPSGDStage,),
    "privacy.": (PrivacySettings,),
    "federation.": (FederationSettings,),
    "evaluation.": (EvaluationSettings,),
    "simulation.": (SimulationSettings,),
    "simulation.phantom_sites[].": (PhantomSite,),
    "simulation.partition.SITE.": (PartitionRule,),
}


def written(value: object) -> str:
    """A default as the page has it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple) and value:
        return f"`{json.dumps(list(value))}`"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value) if value or value == 0 else "none"


def keys() -> list[tuple[str, str]]:
    """Every key that a study can have, with its default; parts of it have a table of their own."""
    found = []
    for prefix, models in PARTS.items():
        for model in models:
            for name, field in model.model_fields.items():
                if isinstance(field.default, BaseModel):
                    continue
                default = "**required**" if field.is_required() else written(field.default)
                found.append((f"{prefix}{name}", default))
    return found


def test_the_page_has_every_key_with_its_default_and_no_other() -> None:
    listed = [(key, default) for key, default, _ in ROW.findall(PAGE.read_text())]
    parts = {"model", "stages", "evaluation", "simulation"}
    assert [row for row in listed if row[0] not in parts] == keys()


def test_the_least_study_of_the_page_is_one() -> None:
    least, votes = re.findall(r"```yaml\n(.+?)```", PAGE.read_text(), re.DOTALL)
    assert parse_study(least, source="page").stages.votes is None
    alone = least.replace("federation: {rounds: 40}\n", "") + votes
    assert parse_study(alone, source="page").stages.dpsgd is None
