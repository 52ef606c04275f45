"""What the sites' receipts prove of a run: who answered, and what it cost each of them.

The same checks that the server made when they arrived, made anew from the files alone, so that a
release stands on signatures of the sites and not on what the server wrote about them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import FundusgenError, ReceiptError
from fundusgen.privacy.keys import public_key
from fundusgen.privacy.receipt_folder import read_receipts
from fundusgen.privacy.receipts import Receipt, require_epsilon, require_follows, require_signed
from fundusgen.run_folder import RunFolder


@dataclass(frozen=True)
class SiteProof:
    """What one site's receipts prove.

    Attributes:
        site: Its name.
        answers: Rounds of this study whose answers count in the generator.
        receipts: Receipts of this study.
        declared_patients: As the site declares publicly; 0 where it gave no receipt.
        epsilon: Largest total of any receipt, over all the site's studies; None without one.
        delta: At which that holds.
        faults: Why the receipts do not prove it; none where they do.
    """

    site: str
    answers: int
    receipts: int
    declared_patients: int
    epsilon: float | None
    delta: float | None
    faults: tuple[str, ...]


def proofs_of(run: RunFolder) -> tuple[SiteProof, ...]:
    """Check the receipts of every site whose answers count.

    Guarantee: a proof without faults means that each answer that the run's metrics count has a
        receipt of this study and round, that the key in `known-sites` signed every receipt of the
        site, that each follows the one before, and that the last epsilon is what its events cost.
    Edge cases: a site without a key or without receipts has faults; a run in which nobody
        answered has no proofs.

    Raises:
        RunError: There is no study.
        StudyError: It is damaged.
    """
    study_hash = run.study().study_hash
    answered: dict[str, set[int]] = {}
    for entry in run.metrics():
        for site in entry["sites"]:
            if site["state"] == "accepted":
                answered.setdefault(str(site["site"]), set()).add(int(entry["round"]))
    try:
        kept = read_receipts(run.receipts)
    except ReceiptError as error:
        # One damaged file makes the order of its site's receipts unknown, and whose it is.
        return tuple(
            SiteProof(site, len(rounds), 0, 0, None, None, (error.found,))
            for site, rounds in sorted(answered.items())
        )
    return tuple(
        _proof(site, rounds, kept.get(site, []), study_hash, run.known_sites / f"{site}.pub")
        for site, rounds in sorted(answered.items())
    )


def _proof(
    site: str, rounds: set[int], receipts: Sequence[Receipt], study_hash: str, key_file: Path
) -> SiteProof:
    own = [receipt for receipt in receipts if receipt.study_hash == study_hash]
    faults = []
    missing = sorted(rounds - {receipt.round_number for receipt in own})
    if missing:
        faults.append(f"no receipt of {len(missing)} answers, the first in round {missing[0]}")
    try:
        key = public_key(key_file.read_bytes(), key_file.name)
    except OSError:
        faults.append(f"its public key {key_file.name} is not in known-sites")
    except FundusgenError as error:
        faults.append(error.found)
    else:
        faults += _not_sound(receipts, key)
    dearest = max(receipts, key=lambda receipt: receipt.epsilon_total, default=None)
    return SiteProof(
        site, len(rounds), len(own),
        receipts[-1].declared_patients if receipts else 0,
        dearest.epsilon_total if dearest else None,
        dearest.delta if dearest else None,
        tuple(faults),
    )  # fmt: skip


def _not_sound(receipts: Sequence[Receipt], key: ec.EllipticCurvePublicKey) -> list[str]:
    """What is wrong with a site's receipts, in order; the epsilon of the last covers the others."""
    faults = []
    for place, receipt in enumerate(receipts):
        try:
            require_signed(receipt, key)
            if place:
                require_follows(receipt, receipts[place - 1])
            if place == len(receipts) - 1:
                require_epsilon(receipt)
        except ReceiptError as error:
            faults.append(error.found)
    return faults
