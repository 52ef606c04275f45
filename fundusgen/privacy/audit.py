"""The audit of a ledger: does what a site has spent hold, by everything that can still be checked.

Offline, and on a copy: the ledger's own chain, the receipts that servers keep, the policy's texts
that the ledger holds, and three accountants that share nothing but the events. An audit says what
it checked, what it found and what that means; it repairs nothing.

    audit             one object with everything, for `report.audit_page` and `audit.json`
      audit_findings  what a finding is, and what each kind of finding means
      audit_receipts  the ledger against receipts
      audit_policy    every event against the policy of its time, and who allowed it
      audit_story     what happened, in order
      ledger_salvage  the ledger against itself
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.privacy.accounting import (
    epsilon,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    is_coarsened,
)
from fundusgen.privacy.audit_findings import Check, Finding, finding
from fundusgen.privacy.audit_policy import PolicyPeriod, audit_policy, policy_periods
from fundusgen.privacy.audit_receipts import audit_outbox, audit_receipts, sift_signed
from fundusgen.privacy.audit_story import StoryItem, tell
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.ledger_rows import LedgerRow
from fundusgen.privacy.ledger_salvage import Flaw, Salvage
from fundusgen.privacy.policy import Policy
from fundusgen.privacy.privacy_filter import filter_epsilon
from fundusgen.privacy.receipts import Receipt
from fundusgen.privacy.reconciliation import COUNTED, Reconciliation, reconcile

# PRV and PLD bound the same number from above and agree to about 0.01; above an epsilon of 50, PLD
# is computed on a coarser mesh.
_AGREEMENT, _MAX_COMPARED = 0.02, 50.0
# A plot needs no more; each point is an epsilon of its own to compute.
_MAX_POINTS = 80


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that an audit is given besides the ledger.

    Attributes:
        receipts: Receipts of this site; None where none were given, which is not the same as an
            empty folder.
        unreadable: What lies among the receipts and cannot be read: `(name, why)`.
        studies: Hashes of studies whose receipts should be complete.
        keys: Public keys of the site, the present one first.
        replies: The outbox by request and digest, with the receipt in each reply; None where
            there is no outbox beside the ledger.
        policy: The policy file as it is now, or None.
    """

    receipts: tuple[Receipt, ...] | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    studies: frozenset[str] = frozenset()
    keys: tuple[ec.EllipticCurvePublicKey, ...] = ()
    replies: dict[tuple[str, str], Receipt | None] | None = None
    policy: Policy | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """The total after an event.

    Attributes:
        event_id: The event.
        at: When it was reserved, UTC, ISO 8601; as the site's clock said.
        study_id: Its study.
        round_number: Its round.
        epsilon: Total of all events up to it, at the audit's delta.
    """

    event_id: int
    at: str
    study_id: str
    round_number: int
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class StudyShare:
    """What one study has cost.

    Attributes:
        study_id: Its name.
        study_hash: Its hash.
        rows: Its events.
        events: What they count, in the shortest form.
        epsilon_alone: Of its events by themselves.
        receipts: How many of its answers a receipt was given for; None where none were given.
    """

    study_id: str
    study_hash: str
    rows: tuple[LedgerRow, ...]
    events: tuple[Event, ...]
    epsilon_alone: float
    receipts: int | None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The total by each accountant, at the audit's delta.

    Attributes:
        used: What the site's policy counts with: `tightest`, or the filter.
        tightest: The smallest of PRV, Renyi DP and the exact Gaussian (`accounting.epsilon`).
        prv: By PRV; None where it is not needed or cannot be computed soundly.
        pld: By Google's dp-accounting.
        rdp: By Renyi DP.
        coarsened: Whether PRV and PLD rounded the history to fewer mechanisms, upwards.
        filter: By the privacy filter; None where the policy does not count with it.
    """

    used: float
    tightest: float
    prv: float | None
    pld: float
    rdp: float
    coarsened: bool
    filter: float | None = None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything that an audit found out.

    Attributes:
        site: Name of the site.
        ledger: The ledger as it was read.
        evidence: What it was held against.
        receipts: How they compare; None without receipts.
        delta: At which every epsilon here holds: the policy's, else that of the last event.
        policy: The policy that holds now, as far as known.
        periods: The policies that held, in order.
        totals: What was spent, by three accountants.
        studies: By study, in order of their first event.
        points: The total over time.
        story: What happened, in order.
        findings: Everything that was found; faults first.
        checks: What was checked, and whether it holds.
    """

    site: str
    ledger: Salvage
    evidence: Evidence
    receipts: Reconciliation | None
    delta: float
    policy: Policy | None
    periods: tuple[PolicyPeriod, ...]
    totals: Totals
    studies: tuple[StudyShare, ...]
    points: tuple[Point, ...]
    story: tuple[StoryItem, ...]
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """Findings that must not be."""
        return tuple(found for found in self.findings if found.fault)

    @property
    def notices(self) -> tuple[Finding, ...]:
        """What an officer should know, though nothing is wrong with it."""
        return tuple(found for found in self.findings if not found.fault)

    @property
    def holds(self) -> bool:
        """Whether everything that was checked holds."""
        return not self.faults


def audit_ledger(
    ledger: Salvage,
    evidence: Evidence,
    *,
    site: str,
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> Audit:
    """Check a ledger by everything that is at hand.

    Guarantee: `Audit.holds` only if the chain is whole, nothing is missing before the noted end,
    every receipt given is signed, follows the one before, states the epsilon of its history and
    agrees with the ledger, every answer of the studies in question has its receipt, every event
    was within the policy of its time, and the accountants agree. What was not given is not
    checked, and `checks` says so.
    Edge cases: an empty ledger holds and has spent nothing.

    Args:
        ledger: From `salvage`.
        evidence: What to hold it against.
        site: Name of the site.
        progress: Told what is being done, and the share of it that is done, in [0, 1].

    Raises:
        AccountingError: No sound total was found.
    """
    periods = policy_periods(ledger)
    policy = evidence.policy or (periods[-1].policy if periods else None)
    at = policy.delta if policy else _last_delta(ledger)
    findings = [_of_flaw(flaw, ledger) for flaw in ledger.flaws]
    findings += _states(ledger) + _clock(ledger)
    reconciled = None
    if evidence.replies is not None:
        findings += audit_outbox(ledger, evidence.replies)
    own = _own_receipts(ledger, evidence)
    if evidence.receipts is not None or own:
        signed, unsigned = _signed(evidence)
        findings += unsigned
        given = {receipt.digest: receipt for receipt in signed}
        receipts = tuple({**own, **given}.values())
        reconciled = reconcile(ledger, receipts)
        findings += audit_receipts(
            ledger,
            reconciled,
            receipts,
            given=None if evidence.receipts is None else frozenset(given),
            studies=evidence.studies,
            progress=lambda share: progress("receipts", share),
        )
    progress("policy", 0.0)
    findings += audit_policy(ledger, periods, evidence.policy)
    totals, points = _totals(ledger, policy, at), _points(ledger, at, progress)
    findings += _accountants(totals)
    ordered = tuple(sorted(findings, key=lambda found: (not found.fault, found.entry or 0)))
    return Audit(
        site=site,
        ledger=ledger,
        evidence=evidence,
        receipts=reconciled,
        delta=at,
        policy=policy,
        periods=periods,
        totals=totals,
        studies=_studies(ledger, reconciled, evidence, at),
        points=points,
        story=tell(ledger, periods, lambda event_id: _until(ledger, event_id, at)),
        findings=ordered,
        checks=_checks(ordered, evidence, periods),
    )


def _last_delta(ledger: Salvage) -> float:
    return ledger.rows[-1].delta if ledger.rows else 1e-5


def _of_flaw(flaw: Flaw, ledger: Salvage) -> Finding:
    at = next(
        (
            item.entry.written_at
            for item in ledger.entries
            if item.number == flaw.entry and item.entry is not None
        ),
        "",
    )
    return finding(flaw.code, flaw.found, flaw.expected, entry=flaw.entry, at=at)


def _signed(evidence: Evidence) -> tuple[Sequence[Receipt], list[Finding]]:
    """The receipts that count, and findings about the others."""
    receipts = evidence.receipts or ()
    found = [
        finding("receipt-unreadable", f"{name} cannot be read: {why}", "a receipt")
        for name, why in evidence.unreadable
    ]
    if not receipts:
        return receipts, found
    if not evidence.keys:
        found.append(
            finding(
                "no-key",
                f"the signatures of {len(receipts)} receipts were not checked",
                "a public key of the site",
            )
        )
        return receipts, found
    signed, others = sift_signed(receipts, evidence.keys)
    found += [
        finding(
            "signature-wrong",
            f"receipt {receipt.sequence} (round {receipt.round_number} of study "
            f"{receipt.study_id}) is not signed by the site's key",
            "the site's own signature over what the receipt says",
            receipt=receipt.sequence,
        )
        for receipt in others
    ]
    return signed, found


def _own_receipts(ledger: Salvage, evidence: Evidence) -> dict[str, Receipt]:
    """Signed receipts of the replies that the ledger has committed, from the site's own outbox."""
    committed = {(row.request_id, row.payload_digest) for row in ledger.rows if row.answered}
    replies = evidence.replies or {}
    found = [receipt for key, receipt in replies.items() if receipt and key in committed]
    signed, _ = sift_signed(found, evidence.keys)
    return {receipt.digest: receipt for receipt in signed}


def _states(ledger: Salvage) -> list[Finding]:
    """Events that never came to their end."""
    found = []
    for row in ledger.rows:
        if row.stage == COUNTED or row.state == "released":
            continue
        of = f"event {row.event_id} (round {row.round_number} of study {row.study_id})"
        if row.state == "reserved":
            found.append(
                finding(
                    "never-answered",
                    f"{of} was reserved, and nothing was ever sent for it",
                    "an answer, unless the client was cut short or the round was asked no more",
                    entry=row.event_id,
                    at=row.reserved_at,
                )
            )
        else:
            found.append(
                finding(
                    "never-released",
                    f"{of} was answered, and the answer did not go out",
                    "a release",
                    entry=row.event_id,
                    at=row.committed_at,
                )
            )
    return found


def _clock(ledger: Salvage) -> list[Finding]:
    times = [
        (item.number, item.entry.written_at) for item in ledger.entries if item.entry is not None
    ]
    return [
        finding(
            "clock-set-back",
            f"entry {number} says {at}, which is before the entry before it ({before})",
            "times that grow with the numbers",
            entry=number,
            at=at,
        )
        for (_, before), (number, at) in pairwise(times)
        if at < before
    ]


def _totals(ledger: Salvage, policy: Policy | None, delta: float) -> Totals:
    events = merged(ledger.events)
    tightest = epsilon(events, delta)
    by_filter = None
    if policy is not None and policy.composition == "adaptive":
        by_filter = filter_epsilon(events, max_epsilon=policy.max_epsilon, delta=delta)
    return Totals(
        used=tightest if by_filter is None else by_filter,
        tightest=tightest,
        prv=epsilon_prv(events, delta),
        coarsened=is_coarsened(events),
        pld=epsilon_pld(events, delta),
        rdp=epsilon_rdp(events, delta),
        filter=by_filter,
    )


def _accountants(totals: Totals) -> list[Finding]:
    """Hold PRV and PLD against each other, where both are computed of the same history."""
    allowed = _AGREEMENT + 0.01 * totals.pld
    if totals.prv is None or totals.pld > _MAX_COMPARED:
        return []
    if abs(totals.prv - totals.pld) <= allowed:
        return []
    return [
        finding(
            "accountants-differ",
            f"epsilon is {totals.prv:.3f} by PRV and {totals.pld:.3f} by PLD",
            f"numbers within {allowed:.3f} of each other",
        )
    ]


def _points(
    ledger: Salvage, delta: float, progress: Callable[[str, float], None]
) -> tuple[Point, ...]:
    """The total after events: all of them, or evenly spread with each study's first and last."""
    rows = ledger.rows
    stride = max(1, -(-len(rows) // _MAX_POINTS))
    wanted = {*range(0, len(rows), stride), len(rows) - 1}
    for place, (before, after) in enumerate(pairwise(rows)):
        if before.study_hash != after.study_hash:
            wanted |= {place, place + 1}
    points = []
    chosen = sorted(place for place in wanted if place >= 0)
    for done, place in enumerate(chosen):
        row = rows[place]
        progress("budget over time", done / len(chosen))
        points.append(
            Point(
                event_id=row.event_id,
                at=row.reserved_at,
                study_id=row.study_id,
                round_number=row.round_number,
                epsilon=_until(ledger, row.event_id, delta),
            )
        )
    return tuple(points)


def _until(ledger: Salvage, event_id: int, delta: float) -> float:
    return epsilon(merged(ledger.events_until(event_id)), delta)


def _studies(
    ledger: Salvage, receipts: Reconciliation | None, evidence: Evidence, delta: float
) -> tuple[StudyShare, ...]:
    given = {receipt.digest for receipt in evidence.receipts or ()}
    hashes = dict.fromkeys(row.study_hash for row in ledger.rows)
    shares = []
    for study_hash in hashes:
        rows = tuple(row for row in ledger.rows if row.study_hash == study_hash)
        events = merged(
            event for row in rows for event in ledger.counted.get(row.event_id, (row.event,))
        )
        known = {
            row.event_id
            for receipt, row in (receipts.known if receipts else ())
            if receipt.digest in given
        }
        shares.append(
            StudyShare(
                study_id=rows[-1].study_id,
                study_hash=study_hash,
                rows=rows,
                events=events,
                epsilon_alone=epsilon(events, delta),
                receipts=None
                if evidence.receipts is None
                else sum(row.event_id in known for row in rows),
            )
        )
    return tuple(shares)


def _checks(
    findings: Iterable[Finding], evidence: Evidence, periods: Sequence[PolicyPeriod]
) -> tuple[Check, ...]:
    """One line for each thing that was checked, with what speaks against it."""
    left_out = {
        "receipts": "" if evidence.receipts is not None else "no receipts were given",
        "signatures": _why_no_signatures(evidence),
        "outbox": "" if evidence.replies is not None else "no outbox lies beside the ledger",
        "policy": "" if periods else "the ledger holds no policy",
    }
    faults = [found for found in findings if found.fault]
    return tuple(
        Check(
            area=area,
            faults=sum(found.area == area for found in faults),
            not_checked=left_out.get(area, ""),
        )
        for area in ("chain", "end", "signatures", "receipts", "policy", "outbox", "accountants")
    )


def _why_no_signatures(evidence: Evidence) -> str:
    if evidence.receipts is None:
        return "no receipts were given"
    return "" if evidence.keys else "no public key of the site was found"
