"""Every kind of finding is found where it is, and nothing where nothing is."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from answered_ledger import (
    DELTA,
    KEY,
    PLAN,
    VOTES,
    AnsweredSite,
    digest_of,
    make_receipt,
    reserve,
)
from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.privacy import audit as audit_module
from fundusgen.privacy.accounting import epsilon, epsilon_pld, epsilon_rdp
from fundusgen.privacy.audit import Audit, Evidence, audit_ledger
from fundusgen.privacy.audit_findings import known_codes
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_file import head_file
from fundusgen.privacy.ledger_repair import plan_repair
from fundusgen.privacy.ledger_rewrite import carry_out
from fundusgen.privacy.ledger_salvage import lost_ledger, salvage
from fundusgen.privacy.policy import Policy, RefusalReason
from fundusgen.privacy.receipts import Receipt
from fundusgen.privacy.remarks import (
    note_approval,
    note_code_approval,
    note_policy,
    note_refusal,
)

ROUNDS = 4
CAP = 20.0


def policy(**changes: object) -> Policy:
    allowed = {
        "max_epsilon": CAP,
        "delta": DELTA,
        "studies": (digest_of("retina"),),
        "code": (digest_of("code"),),
    }
    return Policy.model_validate({**allowed, **changes})


@pytest.fixture
def site(tmp_path: Path) -> AnsweredSite:
    """A site that was approved by name, and has answered votes and three rounds."""
    site = AnsweredSite(tmp_path / "site" / "ledger.db", policy=policy())
    site.path.parent.mkdir()
    with Ledger.open(site.path) as ledger:
        assert site.policy is not None
        note_code_approval(
            ledger, site.policy, code_hash=digest_of("code"), version="1", by="M. Meier"
        )
        note_approval(
            ledger, site.policy, study_id="retina", study_hash=digest_of("retina"),
            by="M. Meier", cost=4.5,
        )  # fmt: skip
    site.answer(1, VOTES)
    for round_number in range(2, ROUNDS + 1):
        site.answer(round_number)
    return site


def audited(site: AnsweredSite, **evidence: object) -> Audit:
    given = {
        "receipts": tuple(site.receipts),
        "keys": (KEY.public_key(),),
        "policy": site.policy,
        "studies": frozenset({digest_of("retina")}),
    }
    found = salvage(site.path) if site.path.is_file() else lost_ledger(site.path)
    return audit_ledger(found, Evidence(**{**given, **evidence}), site="north")  # type: ignore[arg-type]


def codes(audit: Audit) -> set[str]:
    return {found.code for found in audit.findings}


def test_a_site_where_all_is_well_has_no_findings_at_all(site: AnsweredSite) -> None:
    audit = audited(site)
    assert audit.findings == ()
    assert audit.holds
    assert all(check.holds or check.area == "outbox" for check in audit.checks)


def test_the_totals_are_those_of_the_accountants(site: AnsweredSite) -> None:
    audit = audited(site)
    events = [receipt.event for receipt in site.receipts]
    assert audit.totals.used == audit.totals.tightest == pytest.approx(epsilon(events, DELTA))
    assert audit.totals.pld == pytest.approx(epsilon_pld(events, DELTA))
    assert audit.totals.rdp == pytest.approx(epsilon_rdp(events, DELTA))
    assert [point.epsilon for point in audit.points] == sorted(p.epsilon for p in audit.points)
    assert audit.points[-1].epsilon == pytest.approx(audit.totals.tightest)
    (share,) = audit.studies
    assert share.epsilon_alone == pytest.approx(audit.totals.tightest)
    assert share.receipts == ROUNDS


def test_an_empty_ledger_holds_and_has_spent_nothing(tmp_path: Path) -> None:
    site = AnsweredSite(tmp_path / "ledger.db")
    with Ledger.open(site.path):
        pass
    audit = audited(site, policy=policy(), studies=frozenset())
    assert audit.holds
    assert audit.totals.used == 0.0
    assert audit.points == ()


def test_what_is_not_given_is_not_checked_and_said_so(site: AnsweredSite) -> None:
    audit = audited(site, receipts=None, keys=())
    skipped = {check.area for check in audit.checks if check.not_checked}
    assert skipped == {"signatures", "receipts", "outbox"}
    assert audit.holds


def test_the_story_tells_who_decided_what_was_sent_and_what_was_refused(
    site: AnsweredSite,
) -> None:
    site.policy = policy(max_epsilon=3.0)
    with Ledger.open(site.path) as ledger:
        ledger.remark(
            "policy", site.policy.model_dump(mode="json"), policy_hash=site.policy.policy_hash
        )
        note_refusal(
            ledger, RefusalReason.BUDGET_EXHAUSTED, "20 steps would be too many",
            round_number=5, study_hash=digest_of("retina"),
        )  # fmt: skip
    told = [item.text for item in audited(site).story]
    assert told == [
        f"M. Meier approved code {digest_of('code')[:12]} (fundusgen 1)",
        "M. Meier approved study retina, told that epsilon would come to 4.50 of 20",
        "The policy: cap 20 at delta 1e-05; 1 approved study",
        "Answered rounds 1 to 4, of study retina (stage dpsgd)",
        "The policy: max_epsilon: 20 became 3",
        "Refused round 5 of study retina: budget-exhausted. 20 steps would be too many",
    ]


# One way to each finding; each gets a site where all is well, and gives the evidence that differs.
def _edit(*statements: str) -> Callable[[AnsweredSite], dict[str, object]]:
    def change(site: AnsweredSite) -> dict[str, object]:
        site.edit(*statements)
        return {}

    return change


def _unlink_head(site: AnsweredSite) -> dict[str, object]:
    head_file(site.path).unlink()
    return {}


def _damage_head(site: AnsweredSite) -> dict[str, object]:
    head_file(site.path).write_text("{}")
    return {}


def _other_head(site: AnsweredSite) -> dict[str, object]:
    text = head_file(site.path).read_text()
    head_file(site.path).write_text(text.replace(text.split('"')[-2], "0" * 64))
    return {}


def _damage(site: AnsweredSite) -> dict[str, object]:
    with site.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    return {}


def _lose(site: AnsweredSite) -> dict[str, object]:
    site.path.unlink()
    return {}


def _restore(site: AnsweredSite) -> dict[str, object]:
    backup = site.copy_to(site.path.parent.parent / "backup")
    site.answer(5)
    site.restore(backup)
    return {}


def _give_up(site: AnsweredSite) -> dict[str, object]:
    site.give_up(5)
    return {}


def _unreleased(site: AnsweredSite) -> dict[str, object]:
    assert site.policy is not None
    with Ledger.open(site.path) as ledger:
        event_id = reserve(ledger, 5, PLAN, policy_hash=site.policy.policy_hash)
        ledger.commit(event_id, PLAN, "ab" * 32)
    return {}


def _clock(site: AnsweredSite) -> dict[str, object]:
    with Ledger.open(site.path, clock=lambda: datetime.now(UTC) - timedelta(days=2)) as ledger:
        ledger.remark("refused", {"reason": "failed"})
    return {}


def _receipts(
    change: Callable[[list[Receipt]], list[Receipt]],
) -> Callable[[AnsweredSite], dict[str, object]]:
    return lambda site: {"receipts": tuple(change(list(site.receipts)))}


def _signed_again(receipt: Receipt, **changes: object) -> Receipt:
    return dataclasses.replace(receipt, **changes).signed(KEY)  # type: ignore[arg-type]


def _contradict(site: AnsweredSite) -> dict[str, object]:
    """Somebody changes an event in all its entries, and makes chain and head anew."""
    receipts = list(site.receipts)
    site.receipts.clear()
    for file in site.path.parent.glob("ledger.db*"):
        file.unlink()
    for receipt in receipts[:-1]:
        site.answer(receipt.round_number, receipt.event)
    cheaper = dataclasses.replace(PLAN, noise_multiplier=4.0)
    with Ledger.open(site.path) as ledger:
        event_id = reserve(ledger, ROUNDS, cheaper, policy_hash=receipts[-1].policy_hash)
        ledger.commit(event_id, cheaper, "ab" * 32, receipt_digest=receipts[-1].digest)
        ledger.release(event_id, "ab" * 32)
    site.receipts.append(receipts[-1])
    return {}


def _late_entry(site: AnsweredSite) -> dict[str, object]:
    """A receipt that was made before an event that now stands before it."""
    site.receipts[-1] = _signed_again(
        site.receipts[-1],
        spent=(*site.receipts[-2].spent[:1], PLAN),
        epsilon_total=epsilon((*site.receipts[-2].spent[:1], PLAN), DELTA),
    )
    with Ledger.open(site.path) as ledger:
        row = ledger.rows()[-1]
    other = AnsweredSite(site.path.parent / "other" / "ledger.db", policy=site.policy)
    other.path.parent.mkdir()
    for receipt in site.receipts[:-1]:
        other.answer(receipt.round_number, receipt.event)
    with Ledger.open(other.path) as ledger:
        event_id = reserve(ledger, ROUNDS, PLAN, policy_hash=row.policy_hash)
        ledger.commit(event_id, PLAN, row.payload_digest, receipt_digest=site.receipts[-1].digest)
        ledger.release(event_id, row.payload_digest)
    site.restore(other)
    return {}


def _with_policy(**changes: object) -> Callable[[AnsweredSite], dict[str, object]]:
    def change(site: AnsweredSite) -> dict[str, object]:
        site.policy = policy(**changes)
        site.answer(5)
        return {}

    return change


def _answer(**row: object) -> Callable[[AnsweredSite], dict[str, object]]:
    def change(site: AnsweredSite) -> dict[str, object]:
        site.answer(5, **row)
        return {}

    return change


def _approve_nobody(site: AnsweredSite) -> dict[str, object]:
    other, code = digest_of("other"), digest_of("other code")
    site.policy = policy(studies=(digest_of("retina"), other), code=(digest_of("code"), code))
    site.answer(1, mark="other", study_id="other", study_hash=other, code_hash=code)
    return {}


def _data(site: AnsweredSite) -> dict[str, object]:
    site.answer(5, data_fingerprint="a" * 64)
    site.answer(6, data_fingerprint="b" * 64)
    return {}


def _repair(site: AnsweredSite) -> dict[str, object]:
    site.edit("DELETE FROM entries WHERE sequence = 4")
    plan = plan_repair(site.path, site.receipts, {}, max_epsilon=CAP, delta=DELTA)
    carry_out(plan, by="M. Meier", reason="an entry was deleted")
    return {}


def _unreadable_policy(site: AnsweredSite) -> dict[str, object]:
    with Ledger.open(site.path) as ledger:
        ledger.remark("policy", {"max_epsilon": "much"}, policy_hash="d" * 64)
    return {}


SCENARIOS: dict[str, Callable[[AnsweredSite], dict[str, object]]] = {
    "ledger-lost": _lose,
    "not-a-ledger": _edit("PRAGMA application_id = 7"),
    "newer-version": _edit("PRAGMA user_version = 7"),
    "tables-changed": _edit("CREATE TABLE other (x)"),
    "database-damaged": _damage,
    "no-identity": _edit("DELETE FROM identity"),
    "head-missing": _unlink_head,
    "head-damaged": _damage_head,
    "head-differs": _other_head,
    "entries-lost": _edit("DELETE FROM entries WHERE sequence > 12"),
    "entries-missing": _edit("DELETE FROM entries WHERE sequence = 8"),
    "entry-repeated": _edit(
        "ALTER TABLE entries RENAME TO old", "CREATE TABLE entries AS SELECT * FROM old",
        "INSERT INTO entries SELECT * FROM entries WHERE sequence = 5", "DROP TABLE old",
    ),
    "entry-illegible": _edit("UPDATE entries SET sequence = -3 WHERE sequence = 15"),
    "entry-changed": _edit("UPDATE entries SET steps = 1 WHERE sequence = 8"),
    "link-broken": _edit(f"UPDATE identity SET ledger_id = '{'f' * 64}'"),
    "state-impossible": lambda site: _impossible(site),
    "never-answered": _give_up,
    "never-released": _unreleased,
    "clock-set-back": _clock,
    "receipt-unreadable": lambda _: {"unreadable": (("north/000009.json", "no JSON"),)},
    "receipt-repeated": _receipts(
        lambda receipts: [*receipts, _signed_again(receipts[1], request_id="ab" * 16)]
    ),
    "no-key": lambda _: {"keys": ()},
    "signature-wrong": _receipts(
        lambda receipts: [*receipts[:-1], dataclasses.replace(receipts[-1], epsilon_total=1.0)]
    ),
    "epsilon-wrong": _receipts(
        lambda receipts: [*receipts[:-1], _signed_again(receipts[-1], epsilon_total=1.0)]
    ),
    "receipts-break": _receipts(
        lambda receipts: [
            *receipts[:-1],
            _signed_again(receipts[-1], spent=(PLAN,), epsilon_total=epsilon([PLAN], DELTA)),
        ]
    ),
    "release-not-in-ledger": _edit("DELETE FROM entries WHERE sequence > 13"),
    "release-deleted": _edit("DELETE FROM entries WHERE event_id = 7"),
    "release-unknown": _restore,
    "receipt-contradicts": _contradict,
    "receipt-counts-more": _edit("DELETE FROM entries WHERE event_id = 7"),
    "receipt-counts-less": _late_entry,
    "receipt-missing": _receipts(lambda receipts: receipts[:-1]),
    "receipts-not-given": lambda _: {"receipts": (), "studies": frozenset()},
    "receipt-not-kept": lambda site: {
        "receipts": tuple(site.receipts[:-1]), "replies": site.outbox(),
    },
    "reply-contradicts": lambda site: _forge_noise(site),
    "policy-altered": lambda site: _alter_policy(site),
    "policy-not-current": lambda site: _old_policy(site),
    "repair-unknown": lambda site: _pretend_repair(site),
    "reply-unknown": lambda _: {"replies": {("ef" * 16, "0" * 64): None}},
    "reply-missing": lambda _: {"replies": {}},
    "policy-unknown": _answer(policy_hash="e" * 64),
    "policy-unreadable": _unreadable_policy,
    "policy-not-held": _with_policy(min_noise_multiplier=2.0),
    "over-cap": _with_policy(max_epsilon=2.0),
    "spent-above-cap": lambda _: {"policy": policy(max_epsilon=1.0)},
    "policy-changed-since": lambda _: {"policy": policy(max_epsilon=19.0)},
    "no-approval": _approve_nobody,
    "code-not-approved-by-name": _approve_nobody,
    "delta-large": lambda site: _large_delta(site),
    "any-code": _with_policy(code="any"),
    "fast-noise": _answer(noise_kind="fast"),
    "data-changed": _data,
    "repaired": _repair,
}  # fmt: skip


def _impossible(site: AnsweredSite) -> dict[str, object]:
    """A second release of an event, chained and noted as if it had been written."""
    import json
    import sqlite3
    from contextlib import closing

    from fundusgen.privacy import ledger_file

    with closing(sqlite3.connect(site.path, isolation_level=None)) as connection:
        entries = ledger_file.read_entries(connection)
        last, _, link = entries[-1]
        again = dataclasses.replace(last, sequence=last.sequence + 1)
        digest = ledger_file.append(connection, again, link)
    head_file(site.path).write_text(json.dumps({"sequence": again.sequence, "digest": digest}))
    return {}


def _alter_policy(site: AnsweredSite) -> dict[str, object]:
    """Raise the cap in the ledger's policy, and make the chain anew; receipts and outbox agree."""
    site.forge(
        lambda entry: (
            dataclasses.replace(entry, note=entry.note.replace("20.0", "90.0"))
            if entry.state == "policy"
            else entry
        )
    )
    return {"replies": site.outbox(), "policy": None}


def _old_policy(site: AnsweredSite) -> dict[str, object]:
    """Answer under a policy after another one was noted."""
    now, before = policy(studies=()), policy()
    with Ledger.open(site.path) as ledger:
        note_policy(ledger, now)
        event_id = reserve(ledger, 5, PLAN, policy_hash=before.policy_hash)
        receipt = make_receipt(ledger, 5, PLAN, policy_hash=before.policy_hash).signed(KEY)
        ledger.commit(event_id, PLAN, "ab" * 32, receipt_digest=receipt.digest)
        ledger.release(event_id, "ab" * 32)
    site.receipts.append(receipt)
    return {"policy": now}


def _pretend_repair(site: AnsweredSite) -> dict[str, object]:
    with Ledger.open(site.path) as ledger:
        ledger.reserve(
            study_id="rogue", study_hash="e" * 64, round_number=1, stage="dpsgd",
            request_id="ab" * 16, content_digest="known from receipt 77", event=PLAN, delta=0.5,
            noise_kind="fast",
        )  # fmt: skip
    return {}


def _forge_noise(site: AnsweredSite) -> dict[str, object]:
    """Make three rounds cheaper, and the chain anew, where no server's receipts are at hand."""
    replies = site.outbox()
    site.forge(
        lambda entry: (
            dataclasses.replace(entry, noise_multiplier=50.0, receipt_digest="")
            if entry.mechanism == PLAN.kind
            else entry
        )
    )
    return {"replies": replies, "receipts": None, "studies": frozenset()}


def _large_delta(site: AnsweredSite) -> dict[str, object]:
    site.policy = policy(delta=1e-2)
    site.answer(5, delta=1e-2)
    return {}


def test_every_kind_of_finding_has_its_scenario() -> None:
    # Accountants that differ are made to, in a test of their own.
    assert set(SCENARIOS) | {"accountants-differ"} == known_codes()


@pytest.mark.parametrize("code", sorted(SCENARIOS))
def test_a_finding_is_found_and_says_what_was_expected_and_what_it_means(
    site: AnsweredSite, code: str
) -> None:
    evidence = SCENARIOS[code](site)
    audit = audited(site, **evidence)
    assert code in codes(audit)
    for found in audit.findings:
        assert found.found
        assert found.expected
        assert found.meaning
        assert found.fault == (found in audit.faults)
    assert audit.holds == (not audit.faults)
    failing = {check.area for check in audit.checks if check.faults}
    assert failing == {found.area for found in audit.faults}


def test_accountants_that_differ_are_a_fault(
    site: AnsweredSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "epsilon_pld", lambda events, delta: 1.0)
    assert "accountants-differ" in codes(audited(site))


def test_without_servers_receipts_the_outbox_still_tells_of_a_forged_ledger(
    site: AnsweredSite,
) -> None:
    alone = {"receipts": None, "studies": frozenset()}
    assert audited(site, replies=site.outbox(), **alone).findings == ()
    site.give_up(5)
    site.answer(6)
    replies = site.outbox()
    assert audited(site, replies=replies, **alone).holds
    site.forge(lambda entry: entry, without=lambda entry: entry.round_number == 5)
    assert "receipt-counts-more" in codes(audited(site, replies=replies, **alone))


def test_a_ledger_that_was_put_back_gone_on_with_and_repaired_holds_again(
    site: AnsweredSite, tmp_path: Path
) -> None:
    backup = site.copy_to(tmp_path / "backup")
    for round_number in (5, 6):
        site.answer(round_number)
    site.restore(backup)
    site.answer(5, mark="after the backup was put back")
    assert not audited(site).holds
    plan = plan_repair(
        site.path, site.receipts, {}, max_epsilon=CAP, delta=DELTA, nothing_else_was_sent=True
    )
    carry_out(plan, by="M. Meier", reason="a backup was put back")
    site.answer(7)
    audit = audited(site)
    assert audit.faults == ()
    assert "repaired" in codes(audit)


def test_a_receipt_signed_by_a_stranger_counts_for_nothing(site: AnsweredSite) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    forged = dataclasses.replace(site.receipts[-1], sequence=99).signed(stranger)
    audit = audited(site, receipts=(*site.receipts, forged))
    assert codes(audit) == {"signature-wrong"}
    assert audit.receipts is not None
    assert audit.receipts.forgotten == ()


def test_an_event_above_the_cap_is_named_where_it_first_was(site: AnsweredSite) -> None:
    third = epsilon([receipt.event for receipt in site.receipts[:3]], DELTA)
    cap = third + 0.01
    other = AnsweredSite(site.path.parent / "capped.db", policy=policy(max_epsilon=cap))
    for receipt in site.receipts:
        other.answer(receipt.round_number, receipt.event)
    (over,) = [found for found in audited(other).findings if found.code == "over-cap"]
    assert "round 4" in over.found


def test_a_cap_that_was_lowered_after_the_last_answer_is_no_fault(site: AnsweredSite) -> None:
    site.policy = policy(max_epsilon=1.0)
    audit = audited(site)
    assert codes(audit) == {"spent-above-cap", "policy-changed-since"}
    assert audit.holds


def test_prv_is_compared_with_pld_only_where_both_were_computed(site: AnsweredSite) -> None:
    site.policy = policy(delta=5e-11)
    other = AnsweredSite(site.path.parent / "other.db", policy=site.policy)
    other.answer(1, delta=5e-11)
    with Ledger.read(other.path) as ledger:
        found = audit_ledger(salvage(other.path), Evidence(policy=other.policy), site="north")
        assert ledger.events() == (PLAN,)
    assert found.totals.prv is None
    assert found.totals.tightest == found.totals.rdp
    assert "accountants-differ" not in codes(found)


def test_a_long_ledger_has_a_plot_of_few_points_with_each_study_in_it(tmp_path: Path) -> None:
    site = AnsweredSite(tmp_path / "ledger.db", policy=policy(max_epsilon=500.0))
    with Ledger.open(site.path) as ledger:
        for number in range(1, 301):
            study = "first" if number < 150 else "second"
            reserve(
                ledger, number, dataclasses.replace(PLAN, steps=1), study_id=study,
                study_hash=digest_of(study), mark=study,
            )  # fmt: skip
    audit = audited(site, receipts=None)
    assert len(audit.points) < 100
    assert {149, 150} <= {point.round_number for point in audit.points}
    assert audit.points[-1].round_number == 300


def test_the_documentation_tells_of_every_kind_of_finding() -> None:
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    listed = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert listed == known_codes()
