"""Flower's entry at a site lets out a mechanism's output and receipt, or one word."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client.site import SIMULATED_SITES
from fundusgen.errors import ManifestError
from fundusgen.federation.exchange import Request
from fundusgen.federation.messages import pack_arrays, request_to_record
from fundusgen.models.factory import build_model
from fundusgen.phantom.site import write_site_folder
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.study import Study

# Stands for what an exception may say of a patient.
TOLD = "patient-4711 in ward-7.png"
STUDY = Study.model_validate(
    {
        "study_id": "t",
        "conditions": ["normal", "amd"],
        "image_size": 32,
        "model": {"width": 4, "latent": 4},
        "stages": {"dpsgd": {"steps_per_round": 1, "sample_rate": 0.5}},
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 20},
    }
)


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch) -> None:
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)
    monkeypatch.delenv(SIMULATED_SITES, raising=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> SiteFolder:
    folder = tmp_path_factory.mktemp("site")
    mix = {"normal": 1.0, "amd": 1.0}
    write_site_folder(folder / "data", patients=12, seed=5, size_px=64, conditions_mix=mix)
    site = SiteFolder(folder)
    data = SiteData(manifest=Path("data/manifest.csv"), root=Path("data"), declared_patients=12)
    site.write(
        SiteSettings(name="north", data=data, threads=1),
        Policy(max_epsilon=8.0, delta=1e-5, studies=(STUDY.study_hash,), code="any"),
    )
    # Answered once, so that the noise of the study is found and the images are framed.
    assert parts(ask(site, request())) == {"arrays", "receipt"}
    return site


@pytest.fixture
def uploaded() -> Iterator[list[str]]:
    """What reaches Flower's own logger, which it sends to the server."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(handler.format(record))  # type: ignore[method-assign]
    logging.getLogger("flwr").addHandler(handler)
    yield said
    logging.getLogger("flwr").removeHandler(handler)


def request(round_number: int = 1) -> RecordDict:
    weights = {name: value.numpy() for name, value in build_model(STUDY).state_dict().items()}
    return request_to_record(
        Request(STUDY.agreed_json(), STUDY.study_hash, round_number, "dpsgd", weights)
    )


def ask(site: SiteFolder | None, content: RecordDict) -> Message:
    config = {} if site is None else {"site": str(site.path)}
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    message = Message(content, 1, "train.dpsgd")
    return client.app.app(message, Context(1, 1, config, RecordDict(), {}))


def parts(reply: Message) -> set[str]:
    assert not reply.has_error()
    return set(reply.content)


def word(reply: Message) -> str:
    """The one word of a refusal, after making sure that there is nothing else in the message."""
    assert parts(reply) == {"refusal"}
    refusal = reply.content["refusal"]
    assert isinstance(refusal, ConfigRecord)
    assert set(refusal) == {"reason"}
    return str(refusal["reason"])


def test_an_answer_holds_arrays_and_a_receipt_and_nothing_else(site, capfd, uploaded) -> None:
    reply = ask(site, request(2))
    assert parts(reply) == {"arrays", "receipt"}
    assert isinstance(reply.content["arrays"], ArrayRecord)
    assert set(reply.content["receipt"]) == {"json"}
    parameters = {name for name, _ in build_model(STUDY).named_parameters()}
    assert set(reply.content["arrays"]) == parameters
    assert reply.metadata.message_type == "train.dpsgd"
    assert uploaded == []
    assert capfd.readouterr() == ("", "")


# Where patients' data is read, where it is trained on, and where what is left of it is stored.
@pytest.mark.parametrize("step", ["_patients", "train_round", "to_payload", "digest"])
@pytest.mark.parametrize(
    "error",
    [ValueError, RuntimeError, MemoryError, KeyError, PermissionError],
    ids=lambda e: e.__name__,
)
def test_an_exception_becomes_the_word_failed_without_its_text(
    site, monkeypatch, capfd, uploaded, step, error
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error(TOLD)

    with monkeypatch.context() as patch:
        patch.setattr(f"fundusgen.training.answering.{step}", fails)
        # Each failure has spent a round's budget: some of them come after the reservation.
        patch.setattr("fundusgen.training.answering._require_budget", lambda *_: None)
        reply = ask(site, request(3))
    assert word(reply) == "failed"
    told = (*capfd.readouterr(), *uploaded, str(reply.content), str(reply.metadata))
    assert not [text for text in told if "4711" in text or "ward" in text]
    assert TOLD in site.log_file.read_text()


def test_an_error_that_names_a_patient_becomes_one_word_of_the_list(
    site, monkeypatch, capfd, uploaded
) -> None:
    def fails(*_: object) -> None:
        raise ManifestError(TOLD)

    monkeypatch.setattr("fundusgen.training.answering._patients", fails)
    reply = ask(site, request(4))
    assert word(reply) == "no-data"
    assert uploaded == []
    assert capfd.readouterr() == ("", "")
    assert TOLD not in str(reply.content)


def malformed(kind: str) -> RecordDict:
    record = request(5)
    if kind == "empty":
        return RecordDict()
    if kind == "another part":
        record["wish"] = MetricRecord({"losses": 1})
    elif kind == "another key":
        record["config"]["log_level"] = "debug"  # type: ignore[index]
    elif kind == "no key":
        del record["config"]["study"]  # type: ignore[attr-defined]
    elif kind == "another type":
        record["config"]["round"] = "5"  # type: ignore[index]
    elif kind == "another id":
        record["config"]["request_id"] = "0" * 32  # type: ignore[index]
    else:
        record["arrays"] = pack_arrays(
            {"decoder": build_model(STUDY).decoder.root.weight.detach().double().numpy()}
        )  # type: ignore[dict-item]
    return record


@pytest.mark.parametrize(
    "kind",
    ["empty", "another part", "another key", "no key", "another type", "another id", "float64"],
)
def test_a_malformed_request_is_refused_in_one_word(site, capfd, uploaded, kind) -> None:
    ledger = site.ledger_file.read_bytes()
    assert word(ask(site, malformed(kind))) == "request-malformed"
    assert site.ledger_file.read_bytes() == ledger
    assert uploaded == []
    assert capfd.readouterr() == ("", "")


def test_a_client_that_was_not_told_its_site_refuses_in_one_word(uploaded) -> None:
    assert word(ask(None, request())) == "site-misconfigured"
    assert uploaded == []


def test_a_client_whose_site_is_not_there_refuses_in_one_word(tmp_path, uploaded) -> None:
    assert word(ask(SiteFolder(tmp_path / "away"), request())) == "site-misconfigured"
    assert uploaded == []


def test_the_server_cannot_name_the_site_folder(site) -> None:
    record = request(6)
    record["config"]["site"] = str(site.path)  # type: ignore[index]
    assert word(ask(None, record)) == "site-misconfigured"


def test_a_log_that_cannot_be_written_refuses_in_one_word(site, tmp_path) -> None:
    other = SiteFolder(tmp_path)
    other.settings_file.write_text(site.settings_file.read_text())
    other.log_file.mkdir()
    assert word(ask(other, request())) == "site-misconfigured"


def test_only_the_stage_of_the_study_is_served(site) -> None:
    message = Message(request(7), 1, "evaluate")
    with pytest.raises(ValueError, match="evaluate"):
        client.app.app(message, Context(1, 1, {"site": str(site.path)}, RecordDict(), {}))
