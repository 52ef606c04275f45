"""What a site writes into its ledger beside events, so that an audit can tell the whole story.

Which policy held when, who approved what, what was refused and why, what was answered again. A
server can ask as often as it likes, so only the first of each kind is written.
"""

import json
from datetime import UTC, datetime

from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_rows import LedgerRow, Remark
from fundusgen.privacy.policy import Policy, RefusalReason

# Of one reason under one policy; the study hash in a request is whatever the server made up.
MAX_REFUSALS = 100


def note_policy(ledger: Ledger, policy: Policy) -> None:
    """Write the policy's text whenever it is another than the last one written.

    Guarantee: after it, the last `policy` remark holds exactly this policy.
    Edge cases: a policy that comes back is written again.

    Raises:
        LedgerError: It could not be written.
    """
    last = last_policy(ledger.remarks())
    if last is None or last.policy_hash != policy.policy_hash:
        ledger.remark("policy", json.loads(policy.to_json()), policy_hash=policy.policy_hash)


def last_policy(remarks: tuple[Remark, ...]) -> Remark | None:
    """Give the policy that was written last.

    Guarantee: None only if none ever was.
    Edge cases: none.
    """
    return next((remark for remark in reversed(remarks) if remark.kind == "policy"), None)


def note_refusal(
    ledger: Ledger,
    reason: RefusalReason,
    said: str,
    *,
    round_number: int,
    study_id: str = "",
    study_hash: str = "",
) -> None:
    """Write that a request was refused, the first time for its study, reason and policy.

    Guarantee: at most `MAX_REFUSALS` of a reason under one policy, whatever a server asks.
    Edge cases: what is not the first is not written.

    Args:
        ledger: The site's ledger.
        reason: The word that leaves.
        said: What the operator reads; nothing about patients.
        round_number: The round that was asked for.
        study_id: Name of the study, or empty.
        study_hash: Its hash, or empty.

    Raises:
        LedgerError: It could not be written.
    """
    policy = last_policy(ledger.remarks())
    policy_hash = policy.policy_hash if policy else ""
    alike = [
        remark
        for remark in ledger.remarks()
        if remark.kind == "refused"
        and remark.note.get("reason") == reason.value
        and remark.policy_hash == policy_hash
    ]
    if len(alike) >= MAX_REFUSALS or any(remark.study_hash == study_hash for remark in alike):
        return
    ledger.remark(
        "refused",
        {"reason": reason.value, "round": round_number, "said": said},
        study_id=study_id,
        study_hash=study_hash,
        policy_hash=policy_hash,
    )


def note_replay(ledger: Ledger, row: LedgerRow) -> None:
    """Write that a reply went out again, the first time for its event.

    Guarantee: one remark an event.
    Edge cases: none.

    Raises:
        LedgerError: It could not be written.
    """
    if any(
        remark.kind == "replayed" and remark.note.get("event_id") == row.event_id
        for remark in ledger.remarks()
    ):
        return
    ledger.remark(
        "replayed",
        {"event_id": row.event_id, "round": row.round_number},
        study_id=row.study_id,
        study_hash=row.study_hash,
    )


def note_approval(
    ledger: Ledger, policy: Policy, *, study_id: str, study_hash: str, by: str, cost: float
) -> None:
    """Write who approved a study, and what they were told that it costs.

    The note's keys: `study` (its hash), `by`, `at` (UTC, ISO 8601), `epsilon_after_study`,
    `max_epsilon`, `delta`.

    Guarantee: written before the policy lets the study in.
    Edge cases: a study approved twice is written twice.

    Args:
        ledger: The site's ledger.
        policy: The policy with the study in it.
        study_id: Name of the study.
        study_hash: Its hash.
        by: The person, as they gave their name.
        cost: Epsilon in total after the study, at the policy's delta.

    Raises:
        LedgerError: It could not be written.
    """
    ledger.remark(
        "approved",
        {
            "study": study_hash,
            "by": by,
            "at": _now(),
            "epsilon_after_study": cost,
            "max_epsilon": policy.max_epsilon,
            "delta": policy.delta,
        },
        study_id=study_id,
        study_hash=study_hash,
        policy_hash=policy.policy_hash,
    )


def note_code_approval(
    ledger: Ledger, policy: Policy, *, code_hash: str, version: str, by: str
) -> None:
    """Write who approved the code that may run at the site.

    Told from the approval of a study by its note, whose keys are: `code` (its hash), `version`
    (of fundusgen, as it calls itself), `by`, `at` (UTC, ISO 8601). It is about no study, so the
    remark's study fields are empty.

    Guarantee: written before the policy lets the code in.
    Edge cases: code approved twice is written twice.

    Args:
        ledger: The site's ledger.
        policy: The policy with the code in it.
        code_hash: Hash of the code, as `fundusgen.code` computes it.
        version: What the code calls itself; two with one version may have different hashes.
        by: The person, as they gave their name.

    Raises:
        LedgerError: It could not be written.
    """
    ledger.remark(
        "approved",
        {"code": code_hash, "version": version, "by": by, "at": _now()},
        policy_hash=policy.policy_hash,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
