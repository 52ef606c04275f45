"""Receipts: a site's signed statements of what it has released.

Every reply carries one. A receipt states the mechanism that made the reply, everything that the
site's ledger counted by then, and the epsilon that follows; it names the receipt before it, so
that none can be left out, and is signed with the site's key, so that nobody else can make one.
The server checks receipts on arrival and keeps them; years later they still show whether a ledger
is the one under which they were made.

Nothing in a receipt depends on a patient, but for `payload_digest`, which is a function of the
mechanism's output. The signature is deterministic (RFC 6979), so that it carries nothing else.
"""

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import AccountingError, ReceiptError
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event, beyond
from fundusgen.privacy.ledger_rows import canonical_json
from fundusgen.study import SITE_NAME

VERSION = 1
# Far above any site's history; parsing must end, and each mechanism costs the checking server time.
MAX_CHARACTERS = 1 << 18
MAX_DISTINCT_EVENTS = 256
# As in `site.yaml`.
MAX_PATIENTS = 1_000_000_000
# The same accountant on another machine rounds otherwise, but not by more.
EPSILON_TOLERANCE = 1e-6
_SIGNING = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A site's statement of one release.

    Guarantee: holds plain values of the right type and range; what they say is true only as far
    as `require_signed`, `require_follows` and `require_epsilon` have shown.
    Edge cases: an empty signature is a receipt that is not signed yet.

    Attributes:
        site: Name of the site.
        study_id: Name of the study.
        study_hash: Its hash.
        round_number: The round that was answered.
        stage: The stage of the study.
        request_id: The request that was answered.
        event: The mechanism that made the reply.
        spent: Everything that the site's ledger counted when the reply was made, `event`
            included, over all its studies; equal mechanisms merged.
        epsilon_total: Of `spent`, at `delta`.
        delta: At which `epsilon_total` holds.
        declared_patients: As the site declares publicly; its share of the average.
        noise: Kind of the noise generator.
        payload_digest: Digest of the arrays that it came with.
        policy_hash: Of the policy that allowed it.
        code_hash: Of the code that ran at the site.
        sequence: 1, 2, 3, ... over all receipts of the site's ledger.
        previous: Digest of the receipt before; of the ledger's identity for the first.
        signature: Base64 of ECDSA on P-384 with SHA-384 over `body`.
    """

    site: str
    study_id: str
    study_hash: str
    round_number: int
    stage: str
    request_id: str
    event: Event
    spent: tuple[Event, ...]
    epsilon_total: float
    delta: float
    declared_patients: int
    noise: str
    payload_digest: str
    policy_hash: str
    code_hash: str
    sequence: int
    previous: str
    signature: str = ""

    @property
    def body(self) -> str:
        """What is signed: canonical JSON of everything but the signature."""
        return canonical_json(self._values())

    @property
    def digest(self) -> str:
        """SHA-256 of `body`, by which the next receipt and the ledger name this one."""
        return hashlib.sha256(self.body.encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON with the signature, the form that is sent and kept."""
        return canonical_json({**self._values(), "signature": self.signature})

    def signed(self, key: ec.EllipticCurvePrivateKey) -> Self:
        """Give this receipt with the signature of a key.

        Guarantee: the same key and the same statement give the same signature.
        Edge cases: an earlier signature is replaced.
        """
        signature = key.sign(self.body.encode(), _SIGNING)
        return replace(self, signature=base64.b64encode(signature).decode())

    def _values(self) -> dict[str, object]:
        values: dict[str, object] = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "signature"
        }
        values["event"] = self.event.to_json()
        values["spent"] = [event.to_json() for event in self.spent]
        return {**values, "version": VERSION}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Guarantee: nothing is guessed: keys, types and ranges are those of a receipt.
        Edge cases: a text longer than `MAX_CHARACTERS` is not parsed. Other spacing or order of
        keys is accepted, since what is signed is made anew.

        Raises:
            ReceiptError: The text is no receipt.
        """
        try:
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"{len(text)} characters")
            values = json.loads(text)
            if not isinstance(values, dict) or values.pop("version", None) != VERSION:
                raise ValueError(f"not of version {VERSION}")
            return cls(**_checked(values))
        except (ValueError, TypeError, RecursionError, AccountingError) as error:
            raise ReceiptError(
                f"a receipt cannot be read: {error}",
                expected=f"a receipt of version {VERSION}, as the site sent it",
            ) from error


def require_signed(receipt: Receipt, key: ec.EllipticCurvePublicKey) -> None:
    """Accept a receipt only if the holder of a key has signed exactly it.

    Guarantee: returns only if the signature is that of `key` over the receipt's `body`.
    Edge cases: a signature that is no base64, or empty, is wrong.

    Raises:
        ReceiptError: It is not.
    """
    try:
        signature = base64.b64decode(receipt.signature, validate=True)
        key.verify(signature, receipt.body.encode(), _SIGNING)
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise ReceiptError(
            f"receipt {receipt.sequence} of {receipt.site} is not signed by the site's key",
            expected="the site's own signature over what the receipt says",
            remedy="Ask the site, by telephone, whether its key has changed",
        ) from error


def require_epsilon(receipt: Receipt) -> None:
    """Accept a receipt only if its epsilon is what its own history costs.

    Guarantee: returns only if this machine's accountant finds `epsilon_total` for `spent` at
    `delta`, up to `EPSILON_TOLERANCE`, and `spent` covers `event`.
    Edge cases: an epsilon that is stated too high is as wrong as one too low.

    Raises:
        ReceiptError: It is not, with both numbers.
    """
    if not covers(receipt.spent, [receipt.event]):
        raise ReceiptError(
            f"receipt {receipt.sequence} of {receipt.site} does not count its own event",
            expected=f"a history with {receipt.event}",
        )
    try:
        found = epsilon(receipt.spent, receipt.delta)
    except AccountingError as error:
        raise ReceiptError(
            f"receipt {receipt.sequence} of {receipt.site} has a history that has no epsilon: "
            f"{error.found}",
            expected=error.expected,
        ) from error
    if not math.isclose(
        found, receipt.epsilon_total, rel_tol=EPSILON_TOLERANCE, abs_tol=EPSILON_TOLERANCE
    ):
        raise ReceiptError(
            f"receipt {receipt.sequence} of {receipt.site} states epsilon "
            f"{receipt.epsilon_total:.6f} at delta {receipt.delta:g}",
            expected=f"{found:.6f}, which its events cost",
            remedy="Use the same version of fundusgen at the site and here",
        )


def require_follows(receipt: Receipt, last: Receipt) -> None:
    """Accept a receipt only if it can come after the last one of the same site.

    Guarantee: returns only if the number is higher, the link is right where it is the very next,
    and everything that was spent then is still counted, with the new event on top.
    Edge cases: numbers in between are missing here when the site answered another server, or a
    reply was lost: that is no error, and the audit holds them against the ledger.

    Raises:
        ReceiptError: The site's ledger forgot something, or there are two of it.
    """
    if receipt.sequence <= last.sequence:
        raise ReceiptError(
            f"receipt {receipt.sequence} of {receipt.site} came after receipt {last.sequence}",
            expected=f"a number above {last.sequence}",
            remedy="The site's ledger is an older copy: the site must repair it "
            "with `fundusgen site ledger repair` and these receipts",
        )
    if receipt.sequence == last.sequence + 1 and receipt.previous != last.digest:
        raise ReceiptError(
            f"receipt {receipt.sequence} of {receipt.site} does not name the receipt before it",
            expected=f"the digest {last.digest[:16]}...",
            remedy="The site has another receipt of the same number: compare its ledger with these",
        )
    if not covers(receipt.spent, [*last.spent, receipt.event]):
        raise ReceiptError(
            f"receipt {receipt.sequence} of {receipt.site} counts less than receipt "
            f"{last.sequence} did",
            expected="everything that was counted before, and the new event",
            remedy="The site's ledger lost events: compare it with these receipts",
        )


def covers(spent: Iterable[Event], events: Iterable[Event]) -> bool:
    """Say whether a history holds at least these events, mechanism by mechanism.

    Guarantee: true only if, for every noise and rate, at least as many steps are in `spent`.
    Edge cases: no events are covered by any history. More noise does not stand in for less.
    """
    return not beyond(events, spent)


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hold every value against its type and range."""
    names = {field.name for field in fields(Receipt)}
    if set(values) != names:
        raise ValueError(f"keys differ at {', '.join(sorted(set(values) ^ names))}")
    spent = values["spent"]
    if not isinstance(spent, list) or len(spent) > MAX_DISTINCT_EVENTS:
        raise ValueError("spent is no short list")
    checks = {
        "site": _is_text(values["site"]) and re.fullmatch(SITE_NAME, values["site"]),
        "study_id": _is_text(values["study_id"]) and re.fullmatch(SITE_NAME, values["study_id"]),
        "request_id": _is_text(values["request_id"]),
        "stage": _is_text(values["stage"]),
        "noise": values["noise"] in ("secure", "fast"),
        "signature": _is_text(values["signature"]),
        "epsilon_total": _is_number(values["epsilon_total"]) and values["epsilon_total"] >= 0,
        # As in a policy.
        "delta": _is_number(values["delta"]) and 1e-12 <= values["delta"] <= 1e-2,
        **{
            name: type(values[name]) is int and 1 <= values[name] < 2**53
            for name in ("round_number", "sequence")
        },
        "declared_patients": type(values["declared_patients"]) is int
        and 1 <= values["declared_patients"] <= MAX_PATIENTS,
        **{
            name: _is_text(values[name]) and _DIGEST.fullmatch(values[name])
            for name in ("study_hash", "payload_digest", "policy_hash", "code_hash", "previous")
        },
    }
    wrong = [name for name, right in checks.items() if not right]
    if wrong:
        raise ValueError(f"impossible {', '.join(sorted(wrong))}")
    return {
        **values,
        "event": Event.from_json(values["event"]),
        "spent": tuple(Event.from_json(event) for event in spent),
    }


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 256 and value.isprintable()


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
