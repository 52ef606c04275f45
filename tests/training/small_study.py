"""A study and a site of phantoms that are small enough to train within a second."""

from pathlib import Path

import yaml

from fundusgen.errors import FundusgenError
from fundusgen.federation.exchange import Request
from fundusgen.federation.weights import Weights
from fundusgen.models.factory import build_model, private_names
from fundusgen.phantom.site import write_site_folder
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.study import Study

PATIENTS = 12


def small_study(**changes: object) -> Study:
    content: dict[str, object] = {
        "study_id": "small",
        "conditions": ["normal", "amd"],
        "image_size": 32,
        "model": {"width": 4, "latent": 4},
        "stages": {"dpsgd": {"steps_per_round": 2, "sample_rate": 0.5, "views_per_patient": 2}},
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 3},
    }
    return Study.model_validate({**content, **changes})


def phantom_site(folder: Path, **policy: object) -> SiteFolder:
    write_site_folder(
        folder / "data",
        patients=PATIENTS,
        seed=5,
        size_px=64,
        conditions_mix={"normal": 1, "amd": 1},
    )
    site = SiteFolder(folder)
    site.write(
        SiteSettings(
            name="north",
            data=SiteData(
                manifest=Path("data/manifest.csv"), root=Path("data"), declared_patients=PATIENTS
            ),
            threads=1,
        ),
        Policy.model_validate({"max_epsilon": 8.0, "delta": 1e-5, "code": "any", **policy}),
    )
    return site


def approve(site: SiteFolder, study: Study) -> None:
    """Let a study in, as a person does who edits the policy by hand."""
    content = yaml.safe_load(site.policy_file.read_text())
    studies = [*content["studies"], study.study_hash]
    site.policy_file.write_text(yaml.safe_dump({**content, "studies": studies}))


def approve_asked(site: SiteFolder, request: Request) -> None:
    """Let in whatever study a request is about, where there is one and a policy to change."""
    try:
        study, policy = Study.model_validate_json(request.study), site.policy()
    except (ValueError, FundusgenError):
        return
    if study.study_hash not in policy.studies:
        approve(site, study)


def private_part(study: Study, request: Request) -> Weights:
    """What a reply to a request is like: its weights without what nobody trains."""
    names = private_names(build_model(study), study.model.private)
    return {name: request.weights[name] for name in names}


def request_for(study: Study, round_number: int = 1, shift: float = 0.0) -> Request:
    state = build_model(study).state_dict()
    weights = {name: value.numpy() + shift for name, value in state.items()}
    return Request(study.agreed_json(), study.study_hash, round_number, "dpsgd", weights)
