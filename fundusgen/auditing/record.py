"""`mechanism.json`: everything that an audit of mechanisms found, for programs.

format            "fundusgen-mechanism-1"
made_at           UTC, ISO 8601
holds             whether nothing contradicts any claim
sufficient        whether every audit could have seen a claim that is much too small
confidence        of each bound's epsilon
alarm             probability of each false alarm, by which claims and checks are judged
noise             secure or fast: which generator ran
mechanisms        list of {name, stage, event, rounds, max_grad_norm, statement_share, canaries,
                  included, runs, delta, claim, power, holds, sufficient, bounds, checks}
  event           of one round: {kind, noise_multiplier, sample_rate, steps}
  bounds          list of {method, source, assumes, epsilon, certain, exceeds}; infinity is null
  checks          list of {code, claim, found, p_value, holds}
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fundusgen.auditing.audit import CONFIDENCE, MechanismAudit
from fundusgen.auditing.checks import ALARM
from fundusgen.storage import write_json


def write_mechanism_json(path: Path, audits: Sequence[MechanismAudit], noise: str) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    write_json(path, mechanism_values(audits, noise))


def mechanism_values(audits: Sequence[MechanismAudit], noise: str) -> dict[str, Any]:
    """Give audits as plain JSON values; the module's docstring lists the keys."""
    return {
        "format": "fundusgen-mechanism-1",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "holds": all(audit.holds for audit in audits),
        "sufficient": all(audit.sufficient for audit in audits),
        "confidence": CONFIDENCE,
        "alarm": ALARM,
        "noise": noise,
        "mechanisms": [_values(audit) for audit in audits],
    }


def _values(audit: MechanismAudit) -> dict[str, Any]:
    mechanism = audit.mechanism
    return {
        "name": mechanism.name,
        "stage": mechanism.stage,
        "event": mechanism.event.to_json(),
        "rounds": mechanism.rounds,
        "max_grad_norm": mechanism.max_grad_norm,
        "statement_share": mechanism.statement_share,
        "canaries": audit.canaries,
        "included": audit.included,
        "runs": audit.runs,
        "delta": audit.delta,
        "claim": audit.claim,
        "power": _finite(audit.power),
        "holds": audit.holds,
        "sufficient": audit.sufficient,
        "bounds": [
            {
                **asdict(bound),
                "epsilon": _finite(bound.epsilon),
                "certain": _finite(bound.certain),
                "exceeds": bound in audit.exceeding,
            }
            for bound in audit.bounds
        ],
        "checks": [
            {**asdict(check), "p_value": _finite(check.p_value), "holds": check.holds}
            for check in audit.checks
        ],
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
