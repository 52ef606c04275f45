"""The part of an audit that holds every event against the policy of its time."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fundusgen.errors import SiteError
from fundusgen.privacy.audit_findings import Finding, finding
from fundusgen.privacy.events import merged
from fundusgen.privacy.ledger_rows import LedgerRow, Remark, canonical_json
from fundusgen.privacy.ledger_salvage import Salvage
from fundusgen.privacy.policy import Policy, parse_policy
from fundusgen.privacy.reconciliation import of_repair

# A cap that is met exactly must not be exceeded by another machine's rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class PolicyPeriod:
    """A policy, and from when on it held.

    Attributes:
        sequence: The entry that notes it.
        at: When that was written.
        policy_hash: Its hash.
        policy: What it allowed; None if this version of fundusgen cannot read it.
        altered: Whether its text is not the one that its hash names.
        changes: What is different from the policy before, in words.
    """

    sequence: int
    at: str
    policy_hash: str
    policy: Policy | None
    altered: bool
    changes: tuple[str, ...]


def policy_periods(ledger: Salvage) -> tuple[PolicyPeriod, ...]:
    """Give the policies that the ledger holds, in order."""
    periods: list[PolicyPeriod] = []
    for remark in ledger.remarks:
        if remark.kind != "policy":
            continue
        try:
            policy = parse_policy(json.dumps(dict(remark.note)), source="a policy in the ledger")
        except (SiteError, ValueError):
            policy = None
        before = periods[-1].policy if periods else None
        periods.append(
            PolicyPeriod(
                sequence=remark.sequence,
                at=remark.written_at,
                policy_hash=remark.policy_hash,
                policy=policy,
                altered=_hash(remark) != remark.policy_hash,
                changes=tuple(_changes(before, policy)),
            )
        )
    return tuple(periods)


def _hash(remark: Remark) -> str:
    """Hash of a policy's text as it stands; not of what this version reads in it."""
    return hashlib.sha256(canonical_json(dict(remark.note)).encode()).hexdigest()


def audit_policy(
    ledger: Salvage, periods: Sequence[PolicyPeriod], now: Policy | None
) -> list[Finding]:
    """Hold every event against the policy under which it was made.

    Guarantee: no fault is found only if the ledger holds the policy of every event, each event
    is within it, and the total never exceeded its cap.
    Edge cases: events that a repair has added were made under no policy, and count in the totals.

    Args:
        ledger: The ledger.
        periods: Its policies.
        now: The policy file as it is now, or None.
    """
    found = [
        finding(
            "policy-unreadable",
            f"the policy that entry {period.sequence} holds cannot be read",
            "a policy as fundusgen writes it",
            entry=period.sequence,
            at=period.at,
        )
        for period in periods
        if period.policy is None
    ]
    found += [
        finding(
            "policy-altered",
            f"the policy that entry {period.sequence} holds is not the one that its hash names",
            f"a policy with the hash {period.policy_hash[:16]}...",
            entry=period.sequence,
            at=period.at,
        )
        for period in periods
        if period.altered
    ]
    found += _strays(ledger)
    rows = [row for row in ledger.rows if not of_repair(row)]
    known = {period.policy_hash: period.policy for period in periods}
    for row in rows:
        if row.policy_hash not in known:
            found.append(
                finding(
                    "policy-unknown",
                    f"event {row.event_id} was made under policy {row.policy_hash[:12] or 'none'}",
                    "a policy that the ledger holds",
                    entry=row.event_id,
                    at=row.reserved_at,
                )
            )
            continue
        current = [period for period in periods if period.sequence < row.event_id]
        if not current or current[-1].policy_hash != row.policy_hash:
            found.append(
                finding(
                    "policy-not-current",
                    f"event {row.event_id} was made under policy {row.policy_hash[:12]}, which "
                    "was not the last one noted before it",
                    "the policy that held then",
                    entry=row.event_id,
                    at=row.reserved_at,
                )
            )
        if (policy := known[row.policy_hash]) is not None:
            found += _not_held(row, policy)
    found += _caps(ledger, rows, known)
    found += _approvals(ledger, rows, periods)
    found += _data(rows)
    found += [_repair(remark) for remark in ledger.remarks if remark.kind == "repaired"]
    return found + _now(ledger, periods, now)


def _strays(ledger: Salvage) -> list[Finding]:
    """Events that say they are of a repair, and that no repair names."""
    named = {
        number
        for remark in ledger.remarks
        if remark.kind == "repaired"
        for number in _listed(remark.note.get("events"))
        if number < remark.sequence
    }
    return [
        finding(
            "repair-unknown",
            f"event {row.event_id} says that a repair wrote it, and none names it",
            "a repair after it that names it",
            entry=row.event_id,
            at=row.reserved_at,
        )
        for row in ledger.rows
        if of_repair(row) and row.event_id not in named
    ]


def _listed(value: object) -> list[int]:
    return [number for number in value if type(number) is int] if isinstance(value, list) else []


def _not_held(row: LedgerRow, policy: Policy) -> list[Finding]:
    """Everything about one event that its own policy did not allow, but for the cap."""
    wrong: list[tuple[str, str]] = []
    if row.study_hash not in policy.studies:
        wrong.append(
            (f"study {row.study_id} ({row.study_hash[:12]})", "a study of the policy's list")
        )
    if policy.code != "any" and row.code_hash not in policy.code:
        wrong.append((f"code {row.code_hash[:12] or 'unknown'}", "code of the policy's list"))
    if row.planned.noise_multiplier < policy.min_noise_multiplier:
        wrong.append(
            (f"noise {row.planned.noise_multiplier:g}", f"at least {policy.min_noise_multiplier:g}")
        )
    if policy.noise == "secure" and row.noise_kind != "secure":
        wrong.append((f"'{row.noise_kind}' noise", "secure noise"))
    if row.round_number > policy.max_rounds_per_study:
        wrong.append((f"round {row.round_number}", f"at most {policy.max_rounds_per_study} rounds"))
    if row.patients_declared < policy.min_patients:
        wrong.append(
            (f"{row.patients_declared} declared patients", f"at least {policy.min_patients}")
        )
    if row.delta != policy.delta:
        wrong.append((f"delta {row.delta:g}", f"delta {policy.delta:g}"))
    return [
        finding(
            "policy-not-held",
            f"event {row.event_id} has {what}",
            f"{expected}, by the policy of that time",
            entry=row.event_id,
            at=row.reserved_at,
        )
        for what, expected in wrong
    ]


def _caps(
    ledger: Salvage, rows: Sequence[LedgerRow], known: dict[str, Policy | None]
) -> list[Finding]:
    """Totals above the cap of their time. Totals only grow, so the last of a period decides."""
    found = []
    start = 0
    for place, row in enumerate(rows):
        following = rows[place + 1] if place + 1 < len(rows) else None
        if following is not None and following.policy_hash == row.policy_hash:
            continue
        policy = known.get(row.policy_hash)
        if policy is not None and _total(ledger, row, policy) > policy.max_epsilon + _ROUNDING:
            first = _first_above(ledger, rows[start : place + 1], policy)
            found.append(
                finding(
                    "over-cap",
                    f"with event {first.event_id} (round {first.round_number} of study "
                    f"{first.study_id}) epsilon came to {_total(ledger, first, policy):.3f} at "
                    f"delta {policy.delta:g}",
                    f"at most {policy.max_epsilon:g}, by the policy of that time",
                    entry=first.event_id,
                    at=first.reserved_at,
                )
            )
        start = place + 1
    return found


def _first_above(ledger: Salvage, rows: Sequence[LedgerRow], policy: Policy) -> LedgerRow:
    low, high = 0, len(rows) - 1
    while low < high:
        middle = (low + high) // 2
        if _total(ledger, rows[middle], policy) > policy.max_epsilon + _ROUNDING:
            high = middle
        else:
            low = middle + 1
    return rows[low]


def _total(ledger: Salvage, row: LedgerRow, policy: Policy) -> float:
    return policy.total_epsilon(merged(ledger.events_until(row.event_id)))


def _approvals(
    ledger: Salvage, rows: Iterable[LedgerRow], periods: Sequence[PolicyPeriod]
) -> list[Finding]:
    """Studies and code that were let in without anybody being named."""
    approved = [remark for remark in ledger.remarks if remark.kind == "approved"]
    studies = {remark.study_hash: remark.sequence for remark in reversed(approved)}
    codes = {str(remark.note.get("code", "")): remark.sequence for remark in reversed(approved)}
    any_code = {
        period.policy_hash
        for period in periods
        if period.policy is not None and period.policy.code == "any"
    }
    found: dict[tuple[str, str], Finding] = {}
    for row in rows:
        place = {"entry": row.event_id, "at": row.reserved_at}
        if studies.get(row.study_hash, row.event_id) >= row.event_id:
            found.setdefault(
                ("study", row.study_hash),
                finding(
                    "no-approval",
                    f"nobody is named who approved study {row.study_id}",
                    "an approval in the ledger before its first event",
                    **place,  # type: ignore[arg-type]
                ),
            )
        if row.policy_hash in any_code:
            found.setdefault(
                ("any", ""),
                finding(
                    "any-code",
                    "the policy allowed any code",
                    "a list of approved code",
                    **place,  # type: ignore[arg-type]
                ),
            )
        elif codes.get(row.code_hash, row.event_id) >= row.event_id:
            found.setdefault(
                ("code", row.code_hash),
                finding(
                    "code-not-approved-by-name",
                    f"nobody is named who approved code {row.code_hash[:12] or 'unknown'}",
                    "an approval in the ledger before its first event",
                    **place,  # type: ignore[arg-type]
                ),
            )
        if row.delta * row.patients_declared >= 1:
            found.setdefault(
                ("delta", row.study_hash),
                finding(
                    "delta-large",
                    f"delta is {row.delta:g}, and {row.patients_declared:,} patients are declared",
                    "a delta below one over the number of patients",
                    **place,  # type: ignore[arg-type]
                ),
            )
        if row.noise_kind == "fast":
            found.setdefault(
                ("fast", row.study_hash),
                finding(
                    "fast-noise",
                    f"study {row.study_id} was answered with 'fast' noise",
                    "noise from a cryptographic generator",
                    **place,  # type: ignore[arg-type]
                ),
            )
    return list(found.values())


def _data(rows: Iterable[LedgerRow]) -> list[Finding]:
    last: dict[str, str] = {}
    found = []
    for row in rows:
        before = last.get(row.study_hash)
        if before and row.data_fingerprint and row.data_fingerprint != before:
            found.append(
                finding(
                    "data-changed",
                    f"the data changed before round {row.round_number} of study {row.study_id}",
                    "the same data in all rounds of a study",
                    entry=row.event_id,
                    at=row.reserved_at,
                )
            )
        last[row.study_hash] = row.data_fingerprint or before or ""
    return found


def _repair(remark: Remark) -> Finding:
    note = remark.note
    added = sum(
        len(events)
        for events in (note.get("forgotten"), note.get("assumed"))
        if isinstance(events, list)
    )
    return finding(
        "repaired",
        f"{note.get('by', 'somebody')} repaired the ledger: {note.get('reason', 'no reason given')}"
        + (f" ({added} events were added)" if added else ""),
        "a ledger that never had to be repaired",
        entry=remark.sequence,
        at=remark.written_at,
    )


def _now(ledger: Salvage, periods: Sequence[PolicyPeriod], now: Policy | None) -> list[Finding]:
    """What the policy of today says about what was spent."""
    last = periods[-1] if periods else None
    policy = now or (last.policy if last else None)
    found = []
    if policy is not None:
        total = policy.total_epsilon(merged(ledger.events))
        if total > policy.max_epsilon + _ROUNDING:
            found.append(
                finding(
                    "spent-above-cap",
                    f"epsilon {total:.3f} is spent, and the cap is now {policy.max_epsilon:g}",
                    "a cap above what is spent",
                )
            )
    if now is not None and last is not None and now.policy_hash != last.policy_hash:
        changes = "; ".join(_changes(last.policy, now)) or "other words for the same"
        found.append(
            finding(
                "policy-changed-since",
                f"the policy file is not the one that the ledger noted last: {changes}",
                "the policy that held when the site was last asked",
                entry=last.sequence,
                at=last.at,
            )
        )
    return found


def _changes(before: Policy | None, after: Policy | None) -> Iterable[str]:
    """Say what is different between two policies."""
    if after is None:
        return
    if before is None:
        yield f"cap {after.max_epsilon:g} at delta {after.delta:g}"
        if after.studies:
            many = len(after.studies) > 1
            yield f"{len(after.studies)} approved stud{'ies' if many else 'y'}"
        return
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    for name in new:
        if old[name] == new[name]:
            continue
        if isinstance(old[name], list) and isinstance(new[name], list):
            for added in [value for value in new[name] if value not in old[name]]:
                yield f"{name}: {str(added)[:12]} added"
            for gone in [value for value in old[name] if value not in new[name]]:
                yield f"{name}: {str(gone)[:12]} taken out"
        else:
            yield f"{name}: {_shown(old[name])} became {_shown(new[name])}"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
