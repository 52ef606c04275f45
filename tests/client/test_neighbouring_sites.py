"""Two sites that differ in one patient tell the same, but for what their mechanisms put out.

Both draw the same noise, the same samples of the patients that both have, and the same views.
Whatever then differs in what leaves them is a function of that one patient: it may be the arrays
and what is computed from them, and nothing else.
"""

import csv
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, tzinfo
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from asked_site import (
    DECLARED_PATIENTS,
    ask,
    asked_site,
    asked_study,
    packed,
    receipt,
    request,
    word,
)
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from fundusgen.data.manifest import write_manifest
from fundusgen.federation.messages import unpack_arrays
from fundusgen.federation.payload import from_payload
from fundusgen.privacy import ledger, noise
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.noise import SecureNoise
from fundusgen.site import SiteFolder
from fundusgen.study import Study
from fundusgen.training import answering

Row = dict[str, str]

STUDY = asked_study()
RARE = asked_study(study_id="rare", conditions=["amd"])
ONE_STEP = asked_study(
    study_id="one-step",
    stages={
        "dpsgd": {
            "steps_per_round": 1,
            "sample_rate": 0.5,
            "views_per_patient": 2,
            "optimizer": "sgd",
            "learning_rate": 1.0,
        }
    },
)
GAN = asked_study(
    study_id="gan", model={"kind": "gan", "width": 4, "latent": 4, "discriminator_width": 4}
)
GAN_ONE_STEP = asked_study(
    study_id="gan-one-step",
    model={**GAN.model.model_dump(), "private": ["discriminator.*"]},
    # So small that the loss of a discriminator that knows nothing yet is clipped to it.
    stages={"dpsgd": {**ONE_STEP.dpsgd.model_dump(), "max_grad_norm": 1e-3}},
)
# The patient in whom two sites differ, by what is particular about them.
KINDS = {
    "the first": 0,
    "with the most images": 2,
    "with another's photograph": 3,
    "with rows that cannot be used": 5,
    "the only one with a condition": 7,
    "with an unreadable image": 9,
    "without a readable image": 10,
    "the last": 11,
}
# Three rounds, the first of them twice.
ANSWERED = (1, 2, 3, 1)
# A study of each model; a GAN differs from a VAE in nothing that depends on a patient's files.
ANSWERS = [(STUDY, kind) for kind in KINDS] + [
    (GAN, kind) for kind in ("the first", "with the most images", "the only one with a condition")
]
USED = [kind for kind in KINDS if kind != "without a readable image"]
# What a receipt says of the arrays: their digest, and what is computed from that.
OF_THE_OUTPUT = ("payload_digest", "previous", "signature")
OF_DATA_AND_OUTPUT = ("data_fingerprint", "payload_digest", "receipt_digest")


def _named(value: Study | str) -> str:
    return value.study_id if isinstance(value, Study) else value


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> SiteFolder:
    """A site with a patient of every kind."""
    drawn = 16
    site = asked_site(
        tmp_path_factory.mktemp("sites") / "all", drawn, STUDY, RARE, ONE_STEP, GAN, GAN_ONE_STEP
    )
    images_of = [
        [row["file"] for row in rows_of(site) if row["patient_id"] == patient_id(number)]
        for number in range(drawn)
    ]
    # Patients who were drawn beyond the last one give their photographs to another.
    images_of, more = images_of[: KINDS["the last"] + 1], images_of[KINDS["the last"] + 1 :]
    images_of[KINDS["with the most images"]] += itertools.chain.from_iterable(more)
    rows = [
        {"file": file, "patient_id": patient_id(number), "dr_grade": "0"}
        for number, files in enumerate(images_of)
        for file in files
    ]

    def of(kind: str) -> list[Row]:
        return [row for row in rows if row["patient_id"] == patient_id(KINDS[kind])]

    image = {row["file"]: site.path / "data" / row["file"] for row in rows}
    for row in of("the only one with a condition"):
        row |= {"dr_grade": "", "diagnosis": "amd"}
    theirs, others = of("with another's photograph")[0], of("the first")[0]
    image[theirs["file"]].write_bytes(image[others["file"]].read_bytes())
    of("with rows that cannot be used")[0]["dr_grade"] = "9"
    rows.append(of("with rows that cannot be used")[1] | {"file": "images/missing.png"})
    for row in [of("with an unreadable image")[0], *of("without a readable image")]:
        image[row["file"]].write_bytes(b"no photograph of " + row["file"].encode())
    write_manifest(site.path / "data" / "manifest.csv", rows)
    # The ledger's random identity, from which the chain of receipts begins, is the same at both.
    Ledger.open(site.ledger_file).close()
    return site


def patient_id(number: int) -> str:
    return f"phantom{number:05d}"


def rows_of(site: SiteFolder) -> list[Row]:
    with site.settings().data.manifest.open(newline="") as manifest:
        return list(csv.DictReader(manifest))


def copy_of(site: SiteFolder, name: str, *, without: str = "") -> SiteFolder:
    """A copy of a site, or its neighbour without one patient and all their images."""
    copy = SiteFolder(shutil.copytree(site.path, site.path.parent / name))
    rows = rows_of(copy)
    kept = [row for row in rows if row["patient_id"] != without]
    assert (len(kept) < len(rows)) is bool(without)
    write_manifest(copy.settings().data.manifest, kept)
    for file in {row["file"] for row in rows} - {row["file"] for row in kept}:
        (copy.path / "data" / file).unlink(missing_ok=True)
    return copy


class SharedDraws(SecureNoise):
    """The randomness of two neighbouring sites, which is the same where both have a use for it.

    Attributes:
        patients: Whom the larger site has, in its order.
        gone: The patient of the larger site who differs.
        sampled: Whether that one is in every sample of the larger site, or in none.
        smaller: Whether this is the site without them.
    """

    def __init__(self, patients: Sequence[str], gone: str, *, sampled: bool, smaller: bool) -> None:
        self.patients, self.gone = list(patients), gone
        self.sampled, self.smaller = sampled, smaller
        self.keys = itertools.count()
        self.asked: list[object] = []

    def key(self, length: int) -> bytes:
        """What the operating system would give for the key of one call."""
        return hashlib.sha256(f"key {next(self.keys)}".encode()).digest()[:length]

    def gaussian(self, shape: Sequence[int], standard_deviation: float) -> Any:
        self.asked.append(tuple(shape))
        return super().gaussian(shape, standard_deviation)

    def uniform_uint64(self, count: int) -> NDArray[np.uint64]:
        if "a sample" in self.asked[-1:]:
            self.asked.append("its order")
            # By index: with places that are alike, any order has the same sum.
            return np.zeros(count, np.uint64)
        self.asked.append("a sample")
        words = super().uniform_uint64(len(self.patients))
        if self.gone in self.patients:
            place = self.patients.index(self.gone)
            words[place] = 0 if self.sampled else 2**64 - 1
            words = np.delete(words, place) if self.smaller else words
        assert len(words) == count
        return words


class SameForAll(np.random.Generator):
    """Views and latents that do not depend on who else is in a batch."""

    def permutation(self, x: Any, axis: int = 0) -> Any:
        return np.array(x)

    def standard_normal(self, size: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        first = np.random.Generator(np.random.PCG64(3)).standard_normal(size[1:], dtype=dtype)
        return np.broadcast_to(first, size).copy()


class Clock:
    """Gives a time that goes on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.seconds = itertools.count()

    def now(self, zone: tzinfo) -> datetime:
        return datetime(2026, 1, 1, tzinfo=zone) + timedelta(seconds=next(self.seconds))


@contextmanager
def drawing(draws: SharedDraws, views: type[np.random.Generator]) -> Iterator[None]:
    """Have a site's mechanisms draw from a source, and its ledger look at a clock of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "os", SimpleNamespace(urandom=draws.key))
        patch.setattr(answering, "SecureNoise", lambda: draws)
        patch.setattr(np.random, "default_rng", lambda: views(np.random.PCG64(7)))
        patch.setattr(ledger, "datetime", Clock())
        yield


@dataclass(frozen=True)
class Told:
    """What a site has told over some rounds, and what it keeps of it."""

    replies: list[Message]
    site: SiteFolder
    draws: SharedDraws

    @property
    def contents(self) -> list[RecordDict]:
        return [reply.content for reply in self.replies]

    @property
    def outputs(self) -> list[dict[str, NDArray[np.float32]]]:
        return [unpack_arrays(content["arrays"]) for content in self.contents]


def neighbours(
    hospital: SiteFolder,
    kind: str,
    asked: Sequence[tuple[Study, int]],
    *,
    sampled: bool,
    views: type[np.random.Generator] = np.random.Generator,
    policy: Mapping[str, object] = MappingProxyType({}),
) -> tuple[Told, Told]:
    """Ask a site, and the same site without one patient, for the same rounds."""
    gone = patient_id(KINDS[kind])
    study, _ = asked[0]
    everyone = answering._patients(hospital, hospital.settings(), study)[0].patient_ids
    told = []
    for name, without in (("larger", ""), ("smaller", gone)):
        site = copy_of(hospital, "asked", without=without)
        content = yaml.safe_load(site.policy_file.read_text())
        site.policy_file.write_text(yaml.safe_dump({**content, **policy}))
        draws = SharedDraws(everyone, gone, sampled=sampled, smaller=bool(without))
        with drawing(draws, views):
            replies = [ask(site, request(study, number)) for study, number in asked]
        # Both were asked at one path, as texts that stay at the site may name it.
        left = SiteFolder(site.path.rename(site.path.with_name(name)))
        told.append(Told(replies, left, draws))
    return told[0], told[1]


@pytest.fixture(autouse=True)
def _removed_sites(hospital: SiteFolder) -> Iterator[None]:
    yield
    for name in ("asked", "larger", "smaller"):
        shutil.rmtree(hospital.path.parent / name, ignore_errors=True)


def said(reply: Message) -> dict[str, object]:
    """Everything about a reply but its arrays' values and what is computed from them."""
    content, about = reply.content, reply.metadata
    envelope = (about.run_id, about.src_node_id, about.dst_node_id, about.message_type)
    if word(content):
        return {"envelope": envelope, "content": packed(content)}
    states = json.loads(receipt(content))
    return {
        "envelope": envelope,
        "keys": list(content),
        "arrays": [
            (name, array.dtype, array.shape, array.stype, len(array.data))
            for name, array in content.array_records["arrays"].items()
        ],
        "receipt": list(content.config_records["receipt"]),
        "values": {name: v for name, v in states.items() if name not in OF_THE_OUTPUT},
        "lengths": {name: len(states[name]) for name in ("payload_digest", "previous")},
        # A signature in DER is a few bytes shorter now and then; it is a function of the output.
        "bytes": len(packed(content)) - len(states["signature"]),
    }


def kept(site: SiteFolder) -> dict[str, object]:
    """The ledger and the outbox, without digests of data and of outputs."""
    with Ledger.read(site.ledger_file) as books:
        rows = [asdict(row) for row in books.rows()]
        remarks = [asdict(remark) for remark in books.remarks()]
    for row in rows:
        for name in OF_DATA_AND_OUTPUT:
            row[name] = len(row[name])
    payloads = {path: path.read_bytes() for path in site.outbox.glob("*")}
    sizes = sorted(
        (path.name.partition(".")[0], len(payload) - len(from_payload(payload).receipt.signature))
        for path, payload in payloads.items()
    )
    return {"rows": rows, "remarks": remarks, "outbox": sizes}


@pytest.mark.parametrize(
    ("study", "kind"), [each for each in ANSWERS if each[1] in USED], ids=_named
)
def test_a_patient_who_was_sampled_changes_the_arrays_and_nothing_else(
    hospital: SiteFolder, study: Study, kind: str
) -> None:
    rounds = [(study, number) for number in ANSWERED]
    larger, smaller = neighbours(hospital, kind, rounds, sampled=True)
    assert [said(reply) for reply in larger.replies] == [said(reply) for reply in smaller.replies]
    assert kept(larger.site) == kept(smaller.site)
    assert larger.draws.asked == smaller.draws.asked != []
    for one, other in zip(larger.outputs, smaller.outputs, strict=True):
        assert not all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("study", "kind"), ANSWERS, ids=_named)
def test_a_patient_who_is_in_no_sample_changes_no_bit(
    hospital: SiteFolder, study: Study, kind: str
) -> None:
    rounds = [(study, number) for number in ANSWERED]
    larger, smaller = neighbours(hospital, kind, rounds, sampled=False)
    assert [packed(one) for one in larger.contents] == [packed(one) for one in smaller.contents]
    assert kept(larger.site) == kept(smaller.site)
    for path in larger.site.outbox.iterdir():
        assert path.read_bytes() == (smaller.site.outbox / path.name).read_bytes()


def test_whether_the_only_patient_of_a_study_is_there_is_not_told(hospital: SiteFolder) -> None:
    rounds = [(RARE, number) for number in (1, 2, 3)]
    larger, smaller = neighbours(hospital, "the only one with a condition", rounds, sampled=True)
    assert len(larger.draws.patients) == 1
    assert [said(reply) for reply in larger.replies] == [said(reply) for reply in smaller.replies]
    assert kept(larger.site) == kept(smaller.site)
    for one, other in zip(larger.outputs, smaller.outputs, strict=True):
        assert not all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("study", [ONE_STEP, GAN_ONE_STEP], ids=["vae", "gan"])
@pytest.mark.parametrize("kind", USED)
def test_a_patient_moves_a_step_by_the_bound_at_most(
    hospital: SiteFolder, kind: str, study: Study
) -> None:
    """The sensitivity of the client as a whole: all that it does around the mechanism included."""
    larger, smaller = neighbours(hospital, kind, [(study, 1)], sampled=True, views=SameForAll)
    one, other = larger.outputs[0], smaller.outputs[0]
    moved = np.sqrt(sum(float(np.sum((one[name] - other[name]) ** 2.0)) for name in one))
    stage = study.dpsgd
    bound = stage.learning_rate * stage.max_grad_norm / (stage.sample_rate * DECLARED_PATIENTS)
    # Weights are float32: what they are rounded by is not the mechanism's.
    assert 0.5 * bound < moved <= bound * (1 + 1e-5)


NOT_APPROVED = "study-not-approved"


@pytest.mark.parametrize(
    ("policy", "word_of_study", "word_of_stranger"),
    [
        ({}, "", NOT_APPROVED),
        ({"max_epsilon": 5.0}, "budget-exhausted", NOT_APPROVED),
        ({"min_patients": DECLARED_PATIENTS + 1}, "too-few-patients", NOT_APPROVED),
        ({"min_patients": DECLARED_PATIENTS}, "", NOT_APPROVED),
        ({"min_noise_multiplier": 9.0}, "noise-too-small", NOT_APPROVED),
        ({"max_rounds_per_study": 19}, "too-many-rounds", NOT_APPROVED),
        ({"models": []}, "model-not-allowed", NOT_APPROVED),
        ({"code": []}, "code-not-approved", NOT_APPROVED),
        ({"release": {"max_bytes_per_round": 9_999}}, "reply-too-large", NOT_APPROVED),
        ({"delta": "much"}, "policy-unreadable", "policy-unreadable"),
    ],
)
def test_a_refusal_is_the_same_word_with_and_without_a_patient(
    hospital: SiteFolder, policy: dict[str, object], word_of_study: str, word_of_stranger: str
) -> None:
    rounds = [(STUDY, 1), (STUDY, 2), (asked_study(study_id="strange"), 1)]
    kind = "the only one with a condition"
    larger, smaller = neighbours(hospital, kind, rounds, sampled=True, policy=policy)
    words = [word_of_study, word_of_study, word_of_stranger]
    assert [word(content) for content in larger.contents] == words
    assert [said(reply) for reply in larger.replies] == [said(reply) for reply in smaller.replies]
    assert kept(larger.site) == kept(smaller.site)
