"""Peak memory of a client that answers one round of the real study.

A site of phantoms with as many patients as a hospital of the real run; the client's own
process, from Flower's message to its reply, with the environment that simulations start it in.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from fundusgen.environment import KEEP_MEMORY
from fundusgen.errors import RunError
from fundusgen.federation.exchange import Request
from fundusgen.federation.messages import RECEIPT, request_to_record
from fundusgen.models.factory import build_model
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.site import write_site_folder
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.study import load_study
from simulations.benchmarks.child import Row, row, rows_of_child
from simulations.benchmarks.generation import REAL_STUDY, peak_mb

PATIENTS = 800


def run() -> list[Row]:
    """Draw the site here, and answer in a fresh process."""
    study = load_study(REAL_STUDY)
    with TemporaryDirectory() as name:
        site = SiteFolder(Path(name) / "site")
        write_site_folder(
            site.path / "data",
            patients=PATIENTS,
            seed=1,
            size_px=study.image_size,
            conditions_mix=dict.fromkeys(PHANTOM_CONDITIONS, 1.0),
            workers=os.cpu_count() or 1,
        )
        data = SiteData(
            manifest=Path("data/manifest.csv"), root=Path("data"), declared_patients=PATIENTS
        )
        site.write(
            SiteSettings(name="bench", data=data, threads=1),
            Policy(
                max_epsilon=study.privacy.target_epsilon,
                delta=study.privacy.target_delta,
                studies=(study.study_hash,),
                code="any",
            ),
        )
        return rows_of_child(__name__, "answer", str(site.path), environment=KEEP_MEMORY)


def answer(folder: str) -> list[Row]:
    """Answer the real study's first round of DP-SGD in this process."""
    imported_mb = peak_mb()
    study = load_study(REAL_STUDY)
    weights = {name: value.numpy() for name, value in build_model(study).state_dict().items()}
    first = study.stage_rounds["dpsgd"][0]
    request = Request(study.agreed_json(), study.study_hash, first, "dpsgd", weights)
    # Flower sets these before it calls an app.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    context = Context(1, 1, {"site": folder}, RecordDict(), {})
    reply = app(Message(request_to_record(request), 1, "train.dpsgd"), context)
    if RECEIPT not in reply.content:
        raise RunError(f"the client refused: see {SiteFolder(Path(folder)).log_file}")
    return [
        row(f"peak memory of a client, {PATIENTS} patients at 64 px", peak_mb(), "MB", 1500.0),
        row("of which before the message arrives", imported_mb, "MB"),
    ]
