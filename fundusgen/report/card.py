"""The model card beside a generator: what it is, what it cost, what it is not for.

After Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fundusgen.models.generator import TRAINING_FILE
from fundusgen.storage import write_atomically
from fundusgen.study import Study

CARD_FILE = "README.md"


def write_card(
    folder: Path,
    study: Study,
    rounds: int,
    epsilon_by_site: Mapping[str, float],
    undecided: Sequence[str] = (),
) -> None:
    """Write the card, whole or not at all.

    Args:
        folder: The generator's folder.
        study: The study that was trained.
        rounds: Rounds that were finished.
        epsilon_by_site: Total epsilon of each site after its last reply, over all its studies.
        undecided: Conditions whose votes were lost in the noise.
    """
    privacy = study.privacy
    costs = "\n".join(
        f"| {site} | {epsilon:.3f} |" for site, epsilon in sorted(epsilon_by_site.items())
    )
    write_atomically(
        folder / CARD_FILE,
        f"""# Generator of the study {study.study_id}

A conditional {study.model.kind.upper()} that draws retinal fundus images of
{study.image_size} px, learned by {len(epsilon_by_site)} sites over {rounds} rounds without a
photograph leaving a site.

- **Conditions**: {", ".join(study.conditions)}
- **Study**: `{study.study_hash}`
- **Draw**: `fundusgen generate FOLDER --condition {study.conditions[0]} --count 100 --out DIR`
- **Pass on**: with `fundusgen release`. `{TRAINING_FILE}` is what only training needed: patients
  may have a part in it, `fundusgen evaluate` attacks it, and no release holds it
{_learned_from(study)}{_not_learned(undecided)}
## Privacy
Differential privacy per {privacy.unit}: bounds what anyone, the study's server included, can learn
about whether one {privacy.unit} with all their images took part. This study aimed at epsilon
{privacy.target_epsilon:g} at delta {privacy.target_delta:g}; the table has each site's total over
all its studies. Epsilons of several sites add up for a {privacy.unit} who is at several of them.
Drawing costs nothing.

| site | epsilon |
|---|---|
{costs}

## Intended use
Research on private, federated generation; teaching how such images come about; trying out whether
images of this quality help a classifier, measured on real images.

## Not intended
Diagnosis, or any decision about a patient. Evidence that a finding exists or looks like this:
conditions are labels the sites gave, and fine structure may be missing or wrong. A substitute for
real test images.

## Quality
Not measured here. Look at the pictures of the run, and compare with real images before any use.
""",
    )


def _not_learned(undecided: Sequence[str]) -> str:
    """Which conditions patients had no say in."""
    if not undecided:
        return ""
    return (
        f"- **Not learned from patients**: no vote for {', '.join(undecided)} stood out of the "
        "noise; their phantoms\n  are the simulator's, as other patients' cameras show them\n"
    )


def _learned_from(study: Study) -> str:
    """What came before any patient, and what patients decided."""
    lines = []
    if study.prior is not None:
        lines.append("- **Prior**: pretrained on phantoms, which are drawn without any patient")
    if study.stages.votes is not None:
        lines.append(
            f"- **Votes**: {study.stages.votes.rounds} rounds of noisy votes chose among phantoms; "
            "those that won are in `population.json`, drawn with `--phantoms`"
        )
        if study.stages.votes.appearance_share:
            lines.append(
                "- **Appearance**: noisy means and variances of the light, colour and texture of "
                "patients' photographs, after which those phantoms are developed"
            )
    return "".join(f"{line}\n" for line in lines)
