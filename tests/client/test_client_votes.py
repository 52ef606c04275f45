"""Flower's app of a site, asked for votes: a tally and a receipt leave, or one word."""

import json
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from asked_site import asked_site, asked_study, packed, receipt, word
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from fundusgen.federation.exchange import Request
from fundusgen.federation.messages import request_to_record
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.privacy.noise import SecureNoise, lattice_spacing
from fundusgen.site import SiteFolder
from fundusgen.study import Study
from fundusgen.training import answering
from fundusgen.training.appearance import NUMBERS, Units
from fundusgen.training.poll import APPEARANCE, VOTES, poll_arrays

CANDIDATES = 8
STUDY = asked_study(
    prior={}, stages={"votes": {"rounds": 3, "candidates": CANDIDATES}, "dpsgd": None},
    federation={},
)  # fmt: skip


def poll(study: Study, round_number: int, value: float = 0.1) -> RecordDict:
    encoder = {k: v.numpy() for k, v in ParameterEncoder(32, len(PARAMETERS)).state_dict().items()}
    arrays = poll_arrays(
        np.full((CANDIDATES, len(PARAMETERS)), value), np.arange(CANDIDATES) % 2, encoder,
        Units(np.zeros(NUMBERS), np.ones(NUMBERS)),
    )  # fmt: skip
    # The same network each time: what is asked is the same question.
    arrays = {name: np.full_like(array, 0.01) if "encoder" in name else array
              for name, array in arrays.items()}  # fmt: skip
    return request_to_record(
        Request(study.agreed_json(), study.study_hash, round_number, "votes", arrays)
    )


def ask(site: SiteFolder, content: RecordDict, kind: str = "train.votes") -> Message:
    with mock.patch.multiple(TaskIdentity, _task_id=1, _run_id=1, _node_id=1):
        message = Message(content, 1, kind)
        reply = client.app.app(message, Context(1, 1, {"site": str(site.path)}, RecordDict(), {}))
    assert not reply.has_error()
    assert reply.metadata.created_at == message.metadata.created_at
    return reply


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return asked_site(tmp_path / "site", 4, STUDY)


def test_what_leaves_is_a_tally_and_a_receipt_and_the_same_bytes_again(site) -> None:
    first, again = (ask(site, poll(STUDY, 1)).content for _ in range(2))
    assert set(first) == {"arrays", "receipt"}
    arrays = first.array_records["arrays"]
    assert {name: arrays[name].numpy().shape for name in arrays} == {
        VOTES: (CANDIDATES,), APPEARANCE: (2 * NUMBERS,),
    }  # fmt: skip
    assert packed(first) == packed(again)


def test_a_poll_under_the_name_of_another_stage_s_message_is_the_same_question(site) -> None:
    first = ask(site, poll(STUDY, 1)).content
    assert packed(ask(site, poll(STUDY, 1), "train.dpsgd").content) == packed(first)


def test_what_is_wrong_with_a_poll_leaves_in_one_word(site) -> None:
    assert word(ask(site, poll(STUDY, 1, np.nan)).content) == "study-mismatch"
    assert word(ask(site, poll(STUDY, 4)).content) == "study-mismatch"
    assert not word(ask(site, poll(STUDY, 1)).content)
    assert word(ask(site, poll(STUDY, 1, 0.2)).content) == "round-conflict"


def test_a_failure_while_votes_are_counted_leaves_in_one_word(site, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory at patient 7")

    monkeypatch.setattr(ParameterEncoder, "forward", fails)
    content = ask(site, poll(STUDY, 1)).content
    assert word(content) == "failed"
    assert b"patient 7" not in packed(content)


@pytest.mark.parametrize("round_number", [1, 2, 3])
def test_a_site_with_one_patient_more_sends_messages_of_the_same_size(
    site, tmp_path, round_number: int
) -> None:
    more = asked_site(tmp_path / "more", 5, STUDY)
    sizes = {
        sum(part.count_bytes() for part in ask(each, poll(STUDY, round_number)).content.values())
        for each in (site, more)
    }
    # A signature in DER is a few bytes longer or shorter by chance.
    assert max(sizes) - min(sizes) < 16


def test_a_patient_more_moves_the_tally_by_one_at_most_and_the_receipt_not_at_all(
    site, tmp_path, monkeypatch
) -> None:
    class SameNoise(SecureNoise):
        def gaussian(self, shape: Sequence[int], standard_deviation: float) -> torch.Tensor:
            draws = np.random.default_rng(1).standard_normal(tuple(shape)) * standard_deviation
            spacing = lattice_spacing(standard_deviation)
            return torch.from_numpy(np.round(draws / spacing) * spacing)

    monkeypatch.setattr(answering, "SecureNoise", SameNoise)
    more = asked_site(tmp_path / "more", 5, STUDY)
    less, with_one = (ask(each, poll(STUDY, 1)).content for each in (site, more))
    tallies = [
        np.concatenate([array.numpy().astype(float) for array in each["arrays"].values()])
        for each in (less.array_records, with_one.array_records)
    ]
    # Before the cast to float32, which comes after the noise, it is 1 at most exactly.
    assert 0.5 < np.linalg.norm(tallies[1] - tallies[0]) < 1 + 1e-5
    told = [json.loads(receipt(each)) for each in (less, with_one)]
    differing = {key for key in told[0] if told[0][key] != told[1][key]}
    # The first receipt names the beginning of its own ledger, which is drawn at random.
    assert differing == {"payload_digest", "signature", "previous"}
