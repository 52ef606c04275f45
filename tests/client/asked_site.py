"""A small study, the site of phantoms that it asks, and Flower's message that does the asking."""

from pathlib import Path
from unittest import mock

from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

import client.app
from fundusgen.federation.exchange import Request
from fundusgen.federation.messages import request_to_record
from fundusgen.models.factory import build_model
from fundusgen.phantom.site import write_site_folder
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.study import Study

DECLARED_PATIENTS = 10


def asked_study(**changes: object) -> Study:
    content: dict[str, object] = {
        "study_id": "asked",
        "conditions": ["normal", "amd"],
        "image_size": 32,
        "model": {"width": 4, "latent": 4},
        "stages": {"dpsgd": {"steps_per_round": 2, "sample_rate": 0.5, "views_per_patient": 2}},
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 20},
    }
    return Study.model_validate({**content, **changes})


def asked_site(folder: Path, patients: int, *studies: Study) -> SiteFolder:
    """A site that has approved some studies; it declares another number of patients than it has."""
    mix = {"normal": 1.0, "amd": 1.0}
    write_site_folder(folder / "data", patients=patients, seed=5, size_px=64, conditions_mix=mix)
    site = SiteFolder(folder)
    data = SiteData(
        manifest=Path("data/manifest.csv"),
        root=Path("data"),
        declared_patients=DECLARED_PATIENTS,
    )
    approved = tuple(study.study_hash for study in studies)
    site.write(
        SiteSettings(name="north", data=data, threads=1),
        Policy(max_epsilon=50.0, delta=1e-5, studies=approved, code="any"),
    )
    return site


def request(study: Study, round_number: int) -> RecordDict:
    """The server's request of a round, with the same weights in every round."""
    weights = {name: value.numpy() for name, value in build_model(study).state_dict().items()}
    return request_to_record(
        Request(study.agreed_json(), study.study_hash, round_number, "dpsgd", weights)
    )


def ask(site: SiteFolder, content: RecordDict) -> Message:
    """Have Flower's app of a site answer, inside a run as Flower's process is."""
    with mock.patch.multiple(TaskIdentity, _task_id=1, _run_id=1, _node_id=1):
        message = Message(content, 1, "train.dpsgd")
        reply = client.app.app(message, Context(1, 1, {"site": str(site.path)}, RecordDict(), {}))
    assert not reply.has_error()
    return reply


def packed(content: RecordDict) -> bytes:
    """All bytes of a message's content, as Flower sends them."""
    return b"".join(part.deflate() for part in get_all_nested_objects(content).values())


def word(content: RecordDict) -> str:
    """The word of a refusal; empty for an answer."""
    return str(content.config_records["refusal"]["reason"]) if set(content) == {"refusal"} else ""


def receipt(content: RecordDict) -> str:
    """The receipt of an answer, in JSON; empty for a refusal."""
    return "" if word(content) else str(content.config_records["receipt"]["json"])
