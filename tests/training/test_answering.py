import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from small_study import (
    approve,
    approve_asked,
    phantom_site,
    private_part,
    request_for,
    small_study,
)

from fundusgen.code import code_hash
from fundusgen.data.patients import PatientDataset
from fundusgen.federation.exchange import Answer, Refusal
from fundusgen.federation.messages import reply_to_record
from fundusgen.federation.weights import digest, require_fit
from fundusgen.models.factory import build_model
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import merged
from fundusgen.privacy.keys import signing_key
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipts import require_epsilon, require_follows, require_signed
from fundusgen.privacy.remarks import MAX_REFUSALS
from fundusgen.site import SiteFolder
from fundusgen.study import Study
from fundusgen.training import answering, mechanisms
from fundusgen.training.mechanisms import noise_for


@pytest.fixture
def site(tmp_path) -> SiteFolder:
    return phantom_site(tmp_path / "site")


def answered(site: SiteFolder, study: Study, round_number: int = 1, shift: float = 0.0) -> Answer:
    request = request_for(study, round_number, shift)
    approve_asked(site, request)
    reply = answering.answer(site, request)
    assert isinstance(reply, Answer), f"{reply}: {site.log_file}"
    return reply


def refused(site: SiteFolder, request) -> RefusalReason:
    approve_asked(site, request)
    reply = answering.answer(site, request)
    assert isinstance(reply, Refusal)
    return reply.reason


def rows(site: SiteFolder):
    with Ledger.read(site.ledger_file) as ledger:
        return ledger.rows()


def change_policy(site: SiteFolder, **changes: object) -> None:
    content = yaml.safe_load(site.policy_file.read_text())
    site.policy_file.write_text(yaml.safe_dump({**content, **changes}))


def test_an_answer_holds_the_private_weights_changed_and_a_receipt_that_fits(site) -> None:
    study = small_study()
    request = request_for(study)
    answer = answered(site, study)
    require_fit(answer.weights, private_part(study, request))
    assert digest(answer.weights) == answer.receipt.payload_digest
    assert digest(answer.weights) != digest(request.weights)
    assert answer.receipt.request_id == request.request_id
    assert answer.receipt.declared_patients == 12
    assert answer.receipt.noise == "secure"


def test_only_the_private_part_is_trained_and_sent(site) -> None:
    study = small_study(model={"width": 4, "latent": 4, "private": ["decoder.*modulation*"]})
    answer = answered(site, study)
    assert all("modulation" in name for name in answer.weights)
    assert len(answer.weights) < len(list(build_model(study).parameters()))


def test_every_round_is_in_the_ledger_and_epsilon_grows_to_the_target_and_not_beyond(site) -> None:
    study = small_study()
    epsilons = [answered(site, study, number).receipt.epsilon_total for number in (1, 2, 3)]
    assert epsilons == sorted(epsilons)
    assert 7.0 < epsilons[-1] <= 8.0
    assert [row.state for row in rows(site)] == ["released"] * 3
    assert {row.event.noise_multiplier for row in rows(site)} == {noise_for(study, "dpsgd")}


def test_the_same_request_is_answered_with_the_same_bytes_and_costs_nothing(site) -> None:
    study = small_study()
    first = reply_to_record(answered(site, study))
    again = reply_to_record(answered(site, study))
    assert again["receipt"]["json"] == first["receipt"]["json"]
    for name in first["arrays"]:
        assert again["arrays"][name].data == first["arrays"][name].data
    assert len(rows(site)) == 1


def test_a_round_asked_again_with_other_weights_is_refused_and_costs_nothing(site) -> None:
    study = small_study()
    answered(site, study)
    assert refused(site, request_for(study, 1, shift=0.5)) is RefusalReason.ROUND_CONFLICT
    assert len(rows(site)) == 1


def test_epsilon_adds_up_over_studies(site) -> None:
    change_policy(site, max_epsilon=50.0)
    one = answered(site, small_study()).receipt.epsilon_total
    two = answered(site, small_study(study_id="other")).receipt.epsilon_total
    events = [row.event for row in rows(site)]
    assert len(events) == 2
    assert two > one
    assert two == pytest.approx(epsilon(events, 1e-5))


def test_a_study_that_would_exceed_the_cap_is_refused_before_its_first_step(site) -> None:
    change_policy(site, max_epsilon=7.0)
    assert refused(site, request_for(small_study())) is RefusalReason.BUDGET_EXHAUSTED
    assert rows(site) == ()


def test_a_cap_that_is_lowered_during_a_study_ends_it_at_this_site(site) -> None:
    study = small_study()
    spent = answered(site, study).receipt.epsilon_total
    change_policy(site, max_epsilon=spent)
    assert refused(site, request_for(study, 2)) is RefusalReason.BUDGET_EXHAUSTED
    assert len(rows(site)) == 1


def test_a_crash_while_training_counts_in_full_and_the_round_can_be_asked_again(
    site, monkeypatch
) -> None:
    change_policy(site, max_epsilon=20.0)
    study = small_study()

    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answering, "train_round", crash)
        approve(site, study)
        with pytest.raises(KeyboardInterrupt):
            answering.answer(site, request_for(study))
    assert [row.state for row in rows(site)] == ["reserved"]
    total = answered(site, study).receipt.epsilon_total
    events = [row.event for row in rows(site)]
    assert len(events) == 2
    assert total == pytest.approx(epsilon(events, 1e-5))


def test_an_answer_that_did_not_go_out_before_the_cap_was_lowered_stays_in(
    site, monkeypatch
) -> None:
    study = small_study()
    approve(site, study)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "release", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            answering.answer(site, request_for(study))
    change_policy(site, max_epsilon=1.0)
    assert refused(site, request_for(study)) is RefusalReason.BUDGET_EXHAUSTED
    assert [row.state for row in rows(site)] == ["committed"]


def test_a_crash_before_the_release_is_answered_from_the_outbox(site, monkeypatch) -> None:
    study = small_study()
    approve(site, study)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "release", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            answering.answer(site, request_for(study))
    assert [row.state for row in rows(site)] == ["committed"]
    stored = next(site.outbox.iterdir()).read_bytes()
    answer = answered(site, study)
    assert answering.to_payload(answer) == stored
    assert [row.state for row in rows(site)] == ["released"]


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        ({"min_noise_multiplier": 50.0}, RefusalReason.NOISE_TOO_SMALL),
        ({"min_patients": 13}, RefusalReason.TOO_FEW_PATIENTS),
        ({"max_rounds_per_study": 2}, RefusalReason.TOO_MANY_ROUNDS),
        ({"models": []}, RefusalReason.MODEL_NOT_ALLOWED),
        ({"code": []}, RefusalReason.CODE_NOT_APPROVED),
        ({"code": ["0" * 64]}, RefusalReason.CODE_NOT_APPROVED),
        ({"release": {"max_bytes_per_round": 10_000}}, RefusalReason.REPLY_TOO_LARGE),
        ({"release": {"metrics": ["loss"]}}, RefusalReason.POLICY_UNREADABLE),
        ({"max_epsilon": "8"}, RefusalReason.POLICY_UNREADABLE),
        ({"max_epsilon": True}, RefusalReason.POLICY_UNREADABLE),
        ({"min_patients": 1.0}, RefusalReason.POLICY_UNREADABLE),
        ({"max_epsilom": 8}, RefusalReason.POLICY_UNREADABLE),
        ({"max_epsilon": "much"}, RefusalReason.POLICY_UNREADABLE),
        ({"max_epsilon": float("inf")}, RefusalReason.POLICY_UNREADABLE),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_before_any_image_is_read(
    site, monkeypatch, policy, word
) -> None:
    change_policy(site, **policy)
    monkeypatch.setattr(answering, "load_patients", lambda *a, **k: pytest.fail("images were read"))
    assert refused(site, request_for(small_study())) is word


def test_a_study_that_nobody_has_approved_is_refused_before_any_image_is_read(
    site, monkeypatch
) -> None:
    monkeypatch.setattr(answering, "load_patients", lambda *a, **k: pytest.fail("images were read"))
    reply = answering.answer(site, request_for(small_study()))
    assert reply == Refusal(RefusalReason.STUDY_NOT_APPROVED)
    approve(site, small_study(study_id="other"))
    reply = answering.answer(site, request_for(small_study()))
    assert reply == Refusal(RefusalReason.STUDY_NOT_APPROVED)


def test_nothing_is_computed_for_a_study_that_nobody_has_approved(site, monkeypatch) -> None:
    monkeypatch.setattr(mechanisms, "noise_for", lambda *_: pytest.fail("noise was calibrated"))
    reply = answering.answer(site, request_for(small_study()))
    assert reply == Refusal(RefusalReason.STUDY_NOT_APPROVED)


def test_an_approval_that_is_taken_back_ends_replays_as_well(site) -> None:
    study = small_study()
    answered(site, study)
    change_policy(site, studies=[])
    reply = answering.answer(site, request_for(study))
    assert reply == Refusal(RefusalReason.STUDY_NOT_APPROVED)


def test_the_code_that_runs_can_be_approved_by_its_hash(site) -> None:
    change_policy(site, code=[code_hash()])
    assert answered(site, small_study()).receipt.code_hash == code_hash()


def test_the_ledger_says_under_which_policy_code_and_data_each_event_was_made(site) -> None:
    study = small_study()
    first = answered(site, study).receipt
    change_policy(site, max_epsilon=9.0)
    second = answered(site, study, 2).receipt
    told = [(row.policy_hash, row.code_hash, row.receipt_digest) for row in rows(site)]
    assert told == [
        (first.policy_hash, code_hash(), first.digest),
        (second.policy_hash, code_hash(), second.digest),
    ]
    assert first.policy_hash != second.policy_hash == site.policy().policy_hash
    one, two = (row.data_fingerprint for row in rows(site))
    assert one == two
    image = next((site.path / "data" / "images").iterdir())
    image.unlink()
    answered(site, study, 3)
    assert rows(site)[-1].data_fingerprint != one
    with Ledger.read(site.ledger_file) as ledger:
        caps = [r.note["max_epsilon"] for r in ledger.remarks() if r.kind == "policy"]
    assert caps == [8.0, 9.0]


def test_receipts_are_signed_chained_and_count_everything(site) -> None:
    change_policy(site, max_epsilon=50.0)
    receipts = [answered(site, small_study(), number).receipt for number in (1, 2)]
    receipts.append(answered(site, small_study(study_id="other")).receipt)
    key = signing_key(site.keys).public_key()
    for number, receipt in enumerate(receipts, start=1):
        require_signed(receipt, key)
        require_epsilon(receipt)
        assert receipt.sequence == number
    for last, receipt in pairwise(receipts):
        assert receipt.previous == last.digest
        require_follows(receipt, last)
    assert set(receipts[-1].spent) == set(merged(row.event for row in rows(site)))


def test_a_refusal_is_written_once_and_a_replay_once(site) -> None:
    study = small_study()
    answered(site, study)
    for _ in range(3):
        answered(site, study)
        refused(site, request_for(study, 1, shift=0.5))
        refused(site, replace(request_for(study), study="{}"))
    change_policy(site, max_epsilon=0.5)
    refused(site, request_for(study, 2))
    refused(site, request_for(study, 3))
    with Ledger.read(site.ledger_file) as ledger:
        told = [(remark.kind, remark.note.get("reason")) for remark in ledger.remarks()]
    assert told == [
        ("policy", None),
        ("replayed", None),
        ("refused", "round-conflict"),
        ("refused", "study-mismatch"),
        ("policy", None),
        ("refused", "budget-exhausted"),
    ]


def test_a_server_cannot_fill_the_ledger_with_refusals(site) -> None:
    request = request_for(small_study())
    for number in range(MAX_REFUSALS + 20):
        asked = replace(request, study_hash=f"{number:064x}")
        assert answering.answer(site, asked) == Refusal(RefusalReason.STUDY_MISMATCH)
    with Ledger.read(site.ledger_file) as ledger:
        assert len(ledger.remarks()) == MAX_REFUSALS


def test_a_site_restored_from_a_backup_learns_from_the_servers_receipt_what_it_forgot(
    site, tmp_path
) -> None:
    study = small_study()
    first = answered(site, study, 1).receipt
    shutil.copytree(site.path, tmp_path / "backup")
    second = answered(site, study, 2).receipt
    restored = SiteFolder(tmp_path / "backup")
    asked = replace(request_for(study, 2), known_receipts={"north": second.digest})
    assert refused(restored, asked) is RefusalReason.LEDGER_UNUSABLE
    assert len(rows(restored)) == 1
    others = {"north": first.digest, "south": second.digest}
    reply = answering.answer(restored, replace(asked, known_receipts=others))
    assert isinstance(reply, Answer)


def test_noise_that_is_not_secure_is_refused_unless_the_policy_allows_it(site) -> None:
    study = small_study(privacy={"target_epsilon": 8, "noise": "fast"})
    assert refused(site, request_for(study)) is RefusalReason.NOISE_NOT_SECURE
    change_policy(site, noise="fast")
    assert answered(site, study).receipt.noise == "fast"
    assert rows(site)[0].noise_kind == "fast"


def test_without_a_policy_nothing_is_allowed(site) -> None:
    site.policy_file.unlink()
    assert refused(site, request_for(small_study())) is RefusalReason.POLICY_UNREADABLE


@pytest.mark.parametrize("change", ["hash", "round", "text", "stage", "weights"])
def test_a_request_that_does_not_fit_its_study_is_refused_and_costs_nothing(
    site, change: str
) -> None:
    request = request_for(small_study())
    other = {
        "hash": replace(request, study_hash="0" * 64),
        "round": replace(request, round_number=4),
        "text": replace(request, study="{}"),
        "stage": replace(request, stage="votes"),
        "weights": replace(request, weights={"a": np.ones(1, np.float32)}),
    }[change]
    assert refused(site, other) is RefusalReason.STUDY_MISMATCH
    if site.ledger_file.exists():
        assert rows(site) == ()


def test_a_site_without_usable_images_says_so_in_one_word_and_spends_nothing(site) -> None:
    for image in (site.path / "data" / "images").iterdir():
        image.write_bytes(b"broken")
    assert refused(site, request_for(small_study())) is RefusalReason.NO_DATA
    assert rows(site) == ()


def test_whether_a_site_has_a_patient_with_a_condition_is_not_told(site) -> None:
    """A refusal would tell it without noise, for each condition in turn, and at no cost."""
    nobody_has = small_study(conditions=["dr4"])
    answer = answered(site, nobody_has)
    assert digest(answer.weights) != digest(request_for(nobody_has).weights)
    assert [row.state for row in rows(site)] == ["released"]


def test_conditions_are_numbered_as_the_study_lists_them(site) -> None:
    settings = site.settings()
    both = [
        answering._patients(site, settings, small_study(conditions=names))[0]
        for names in (["normal", "amd"], ["amd", "dr1", "normal"], ["amd"])
    ]
    assert [set(patients.conditions_N) for patients in both] == [{0, 1}, {0, 2}, {0}]
    assert both[0].image_count == both[1].image_count > both[2].image_count
    np.testing.assert_array_equal(both[0].conditions_N == 0, both[1].conditions_N == 2)


def test_whether_one_patients_gradient_overflows_is_not_told(site, monkeypatch) -> None:
    """A server that chooses the weights could else ask for one patient by their image."""
    views = PatientDataset.views
    overflowing = []

    def with_one_that_overflows(self, indices, *others):
        images, conditions = views(self, indices, *others)
        images[indices == 3] = 1e30
        overflowing.extend(index for index in indices if index == 3)
        return images, conditions

    monkeypatch.setattr(PatientDataset, "views", with_one_that_overflows)
    study = small_study(
        stages={"dpsgd": {"steps_per_round": 2, "sample_rate": 1.0, "views_per_patient": 2}}
    )
    answer = answered(site, study)
    assert len(overflowing) == 2
    require_fit(answer.weights, private_part(study, request_for(study)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_and_cost_nothing(site, value: float) -> None:
    assert refused(site, request_for(small_study(), shift=value)) is RefusalReason.STUDY_MISMATCH
    assert rows(site) == ()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": {"width": 4, "latent": 4, "private": []}}, RefusalReason.STUDY_MISMATCH),
        (
            {"model": {"width": 4, "latent": 4, "private": ["decodr.*"]}},
            RefusalReason.STUDY_MISMATCH,
        ),
    ],
)
def test_a_mechanism_that_cannot_be_built_costs_nothing(site, changes, word) -> None:
    assert refused(site, request_for(small_study(**changes))) is word
    assert rows(site) == ()


def test_a_site_trains_in_batches_whose_places_are_alike(site, monkeypatch) -> None:
    settings = site.settings().model_copy(
        update={"threads": 2, "batch_patients": 7, "grad_sample_mode": "hooks"}
    )
    site.write(settings, site.policy())
    asked, given = [], []
    prepare = answering.prepare_round

    def holds(study: Study, wanted: int, **how: object) -> int:
        # Found out with the threads that will be trained with.
        asked.append((study, wanted, how["mode"], how["kept"], torch.get_num_threads()))
        return 3

    def prepared(*what: object, **how: object) -> object:
        given.append((how["batch_patients"], how["grad_sample_mode"]))
        return prepare(*what, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(answering, "batch_that_holds", holds)
    monkeypatch.setattr(answering, "prepare_round", prepared)
    study = small_study()
    before = torch.get_num_threads()
    answered(site, study)
    torch.set_num_threads(before)
    assert asked == [(study, 7, "hooks", site.cache, 2)]
    assert given == [(3, "hooks")]


@pytest.mark.parametrize("device", ["cuda:77", "meta", "no device"])
def test_a_device_that_cannot_compute_costs_nothing(site, device: str) -> None:
    settings = site.settings().model_copy(update={"device": device})
    site.write(settings, site.policy())
    assert refused(site, request_for(small_study())) is RefusalReason.SITE_MISCONFIGURED
    assert rows(site) == ()


@pytest.mark.parametrize("reason", ["a YAML bomb", "too long", "deep", "a number"])
def test_a_study_that_is_no_plain_json_is_refused_before_it_is_unfolded(site, reason: str) -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))
    text = {
        "a YAML bomb": f"a0: &a0 [x]\n{levels}\nstudy_id: *a9",
        "too long": json.dumps({"study_id": "x" * answering.MAX_STUDY_CHARACTERS}),
        "deep": "[" * 100_000,
        "a number": "1",
    }[reason]
    request = replace(request_for(small_study()), study=text)
    assert refused(site, request) is RefusalReason.STUDY_MISMATCH


def test_a_ledger_that_was_deleted_with_its_head_is_missed_by_the_outbox(site) -> None:
    study = small_study()
    answered(site, study)
    for path in site.path.glob("ledger.db*"):
        path.unlink()
    assert refused(site, request_for(study, 2)) is RefusalReason.LEDGER_UNUSABLE
    assert refused(site, request_for(study, 1)) is RefusalReason.LEDGER_UNUSABLE


def test_an_older_ledger_that_was_put_back_with_its_head_is_missed_by_the_outbox(
    site, tmp_path
) -> None:
    study = small_study()
    answered(site, study, 1)
    kept = {path.name: path.read_bytes() for path in site.path.glob("ledger.db*")}
    answered(site, study, 2)
    for path in site.path.glob("ledger.db*"):
        path.unlink()
    for name, content in kept.items():
        (site.path / name).write_bytes(content)
    assert refused(site, request_for(study, 3)) is RefusalReason.LEDGER_UNUSABLE


@pytest.mark.parametrize(
    "text",
    [
        "max_epsilon: 8\ndelta: 1.0e-5\nmax_epsilon: 80\n",
        "max_epsilon: 8\ndelta: 2026-13-45\n",
        "max_epsilon: .nan\ndelta: 1.0e-5\n",
        "max_epsilon: 8\ndelta: .nan\n",
        "max_epsilon: 8\ndelta: 1.0e-5\nmin_noise_multiplier: .nan\n",
        "",
        "{",
    ],
)
def test_a_policy_that_can_be_read_in_two_ways_or_none_allows_nothing(site, text: str) -> None:
    site.policy_file.write_text(text)
    assert refused(site, request_for(small_study())) is RefusalReason.POLICY_UNREADABLE


def test_three_broken_files_are_left_out_and_the_site_still_answers(site) -> None:
    broken = sorted((site.path / "data" / "images").iterdir())[:3]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(broken[1].read_bytes()[:200])
    broken[2].unlink()
    answered(site, small_study())
    assert json.loads((site.cache / "problems.json").read_text())["left_out"] == 3


def test_a_ledger_that_was_edited_is_refused(site) -> None:
    study = small_study()
    answered(site, study)
    with closing(sqlite3.connect(site.ledger_file)) as database, database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in names:
            database.execute(f"DROP TRIGGER {name}")
        (text,) = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' "
            "AND sql LIKE '%steps%'"
        ).fetchone()
        database.execute(f"UPDATE {text} SET steps = 1")
    assert refused(site, request_for(study, 2)) is RefusalReason.LEDGER_UNUSABLE
