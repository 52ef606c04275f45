"""`audit.json`: everything that an audit found, for programs.

format            "fundusgen-audit-1"
made_at           UTC, ISO 8601
holds             whether all that was checked holds
site, delta
epsilon           {used, tightest, prv, pld, rdp, coarsened, filter}: total by several
                  accountants; `used` is what the site's policy counts with; prv is null where it
                  was not computed, filter where the policy does not count with it
max_epsilon       cap of the policy that holds now, or null
composition       fixed or adaptive, or null
ledger            {created_at, entries, last_digest, genesis, noted_end: [number, digest]}
spent             everything counted, as events {kind, noise_multiplier, sample_rate, steps}
receipts          number of receipts that were held against the ledger, or null
checks            list of {area, claim, holds, faults, not_checked}
findings          list of {code, area, fault, found, expected, meaning, entry, receipt, at}
studies           list of {study_id, study_hash, events, rounds, epsilon_alone, spent, receipts}
over_time         list of {event_id, at, study_id, round, epsilon}
story             list of {at, entry, kind, text, epsilon}
events            list of every row {event_id, state, study_id, round, stage, kind,
                  noise_multiplier, sample_rate, steps, reserved_at, released_at,
                  receipt_digest, policy_hash, code_hash}
"""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fundusgen.privacy.audit import Audit
from fundusgen.privacy.events import merged
from fundusgen.privacy.ledger_rows import LedgerRow
from fundusgen.storage import write_json


def write_audit_json(path: Path, audit: Audit) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    write_json(path, audit_values(audit))


def audit_values(audit: Audit) -> dict[str, Any]:
    """Give an audit as plain JSON values; the module's docstring lists the keys."""
    ledger, policy, receipts = audit.ledger, audit.policy, audit.receipts
    return {
        "format": "fundusgen-audit-1",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "holds": audit.holds,
        "site": audit.site,
        "delta": audit.delta,
        "epsilon": asdict(audit.totals),
        "max_epsilon": policy.max_epsilon if policy else None,
        "composition": policy.composition if policy else None,
        "ledger": {
            "created_at": ledger.created_at,
            "entries": len(ledger.entries),
            "last_digest": ledger.last_digest,
            "genesis": ledger.genesis,
            "noted_end": list(ledger.head) if ledger.head else None,
        },
        "spent": [event.to_json() for event in merged(ledger.events)],
        "receipts": len(audit.evidence.receipts or ()) if receipts else None,
        "checks": [
            {**asdict(check), "claim": check.claim, "holds": check.holds} for check in audit.checks
        ],
        "findings": [asdict(found) for found in audit.findings],
        "studies": [
            {
                "study_id": study.study_id,
                "study_hash": study.study_hash,
                "events": len(study.rows),
                "rounds": len({row.round_number for row in study.rows}),
                "epsilon_alone": study.epsilon_alone,
                "spent": [event.to_json() for event in study.events],
                "receipts": study.receipts,
            }
            for study in audit.studies
        ],
        "over_time": [
            {
                "event_id": point.event_id,
                "at": point.at,
                "study_id": point.study_id,
                "round": point.round_number,
                "epsilon": point.epsilon,
            }
            for point in audit.points
        ],
        "story": [asdict(item) for item in audit.story],
        "events": [_row(row) for row in ledger.rows],
    }


def _row(row: LedgerRow) -> dict[str, Any]:
    return {
        "event_id": row.event_id,
        "state": row.state,
        "study_id": row.study_id,
        "round": row.round_number,
        "stage": row.stage,
        **row.event.to_json(),
        "reserved_at": row.reserved_at,
        "released_at": row.released_at,
        "receipt_digest": row.receipt_digest,
        "policy_hash": row.policy_hash,
        "code_hash": row.code_hash,
    }
