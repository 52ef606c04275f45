"""What the sites' receipts prove of a run: who answered, and what it cost each of them.

The same checks that the server made when they arrived, made anew from the files alone, so that a
release stands on signatures of the sites and not on what the server wrote about them. That the keys
are the sites' own, only the sites can say; and whoever deletes receipts, metrics and what the
generator says of itself, all three, leaves no trace of an answer here.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import FundusgenError, ReceiptError, RunError
from fundusgen.models.generator import MODEL_FILE
from fundusgen.privacy.keys import public_key, public_text
from fundusgen.privacy.receipt_folder import read_receipts, scan_receipts
from fundusgen.privacy.receipts import (
    Receipt,
    covers,
    require_epsilon,
    require_follows,
    require_signed,
)
from fundusgen.release.evidence import at, listed, number
from fundusgen.run_folder import RunFolder


@dataclass(frozen=True)
class SiteProof:
    """What one site's receipts prove.

    Attributes:
        site: Its name.
        answers: Rounds of this study whose answers count in the generator.
        receipts: Receipts of this study.
        declared_patients: As the site declares publicly; 0 where it gave no receipt.
        epsilon: Total of the last receipt, over all the site's studies; None without one. An
            earlier one may state more, at a smaller delta, and yet not the whole.
        delta: At which that holds.
        noise: Kinds of the noise generators of this study's receipts.
        faults: Why the receipts do not prove it; none where they do.
    """

    site: str
    answers: int
    receipts: int
    declared_patients: int
    epsilon: float | None
    delta: float | None
    noise: tuple[str, ...]
    faults: tuple[str, ...]


def proofs_of(run: RunFolder) -> tuple[SiteProof, ...]:
    """Check the receipts of every site that answered: for all that is known, its answer counts.

    Guarantee: a proof without faults means that each answer that the run's metrics count has a
        receipt of this study and round, that the key in `known-sites` signed every receipt of the
        site, that each follows the one before, that the last epsilon is what its events cost, and
        that the metrics tell who answered in every round that the generator speaks of. Every site
        that metrics, receipts or the generator's facts name has a proof.
    Edge cases: a site without a key or without receipts has faults; a run in which nobody
        answered has no proofs.

    Raises:
        RunError: There is no study, or the metrics are damaged.
        StudyError: It is damaged.
    """
    study_hash, facts = run.study().study_hash, _facts(run)
    answered, gap = _answered(run, rounds_of(run))
    stated = at(facts, "epsilon_by_site")
    for site in stated if isinstance(stated, dict) else ():
        answered.setdefault(site, set())
    try:
        kept = read_receipts(run.receipts)
    except ReceiptError as error:
        # One damaged file makes the order of its site's receipts unknown, and whose it is.
        return tuple(
            SiteProof(site, len(rounds), 0, 0, None, None, (), (*gap, error.found))
            for site, rounds in sorted(answered.items())
        )
    for site, receipts in kept.items():
        if any(receipt.study_hash == study_hash for receipt in receipts):
            answered.setdefault(site, set())
    return tuple(
        _proof(site, rounds, kept.get(site, []), study_hash, run.known_sites, gap)
        for site, rounds in sorted(answered.items())
    )


def rounds_of(run: RunFolder) -> int:
    """Rounds that were finished, by the generator's facts and by the metrics: the more of both.

    Raises:
        RunError: The metrics are damaged.
    """
    stated = min(number(_facts(run), "rounds") or 0, run.study().total_rounds)
    return max([int(stated), *(int(entry["round"]) for entry in _metrics(run))])


def proof_files(run: RunFolder, proofs: Sequence[SiteProof]) -> dict[str, bytes]:
    """What others need to check the proofs: receipts and public keys, by path in the bundle.

    Guarantee: made of what was read and understood. Whatever else lies in these folders, a
        private key among the public ones, a comment beside a key, a link, does not leave.
    """
    files: dict[str, bytes] = {}
    receipts = scan_receipts(run.receipts)[0] if run.receipts.is_dir() else []
    for receipt in receipts:
        name = f"receipts/{receipt.site}/{receipt.sequence:06d}"
        # Two of one number are a fault, and both are shown.
        suffix = f"-{receipt.digest[:16]}" if f"{name}.json" in files else ""
        files[f"{name}{suffix}.json"] = f"{receipt.to_json()}\n".encode()
    for site in sorted({proof.site for proof in proofs} & {one.site for one in receipts}):
        with suppress(OSError, FundusgenError):
            key = public_key((run.known_sites / f"{site}.pub").read_bytes(), site)
            files[f"known-sites/{site}.pub"] = f"{public_text(key)}\n".encode()
    return files


def _answered(run: RunFolder, rounds: int) -> tuple[dict[str, set[int]], tuple[str, ...]]:
    """Rounds that each site answered, and what is wrong with the list of rounds."""
    answered: dict[str, set[int]] = {}
    told = set()
    for entry in _metrics(run):
        told.add(int(entry["round"]))
        for site in listed(entry, "sites"):
            if at(site, "state") == "accepted":
                answered.setdefault(str(at(site, "site")), set()).add(int(entry["round"]))
    missing = sorted(set(range(1, rounds + 1)) - told)
    if not missing:
        return answered, ()
    return answered, (
        f"metrics.jsonl does not tell who answered in {len(missing)} rounds, the first of them "
        f"{missing[0]}",
    )


def _metrics(run: RunFolder) -> Sequence[Mapping[str, Any]]:
    try:
        entries = run.metrics()
        if all(type(entry["round"]) is int and type(entry["sites"]) is list for entry in entries):
            return entries
    except (KeyError, TypeError, ValueError, OSError):
        pass
    raise RunError(
        f"{run.metrics_file} is damaged",
        expected="a JSON object a round, with its number and its sites, as the server wrote it",
        remedy="Restore it from where the server wrote it",
    )


def _facts(run: RunFolder) -> Any:
    try:
        return at(json.loads((run.generator / MODEL_FILE).read_bytes()), "facts")
    except (OSError, ValueError):
        return None


def _proof(
    site: str,
    rounds: set[int],
    receipts: Sequence[Receipt],
    study_hash: str,
    known_sites: Path,
    gap: Sequence[str],
) -> SiteProof:
    own = [receipt for receipt in receipts if receipt.study_hash == study_hash]
    faults = [*gap]
    missing = sorted(rounds - {receipt.round_number for receipt in own})
    if missing:
        faults.append(f"no receipt of {len(missing)} answers, the first in round {missing[0]}")
    elif not own:
        faults.append("no receipt of this study")
    try:
        key = public_key((known_sites / f"{site}.pub").read_bytes(), f"{site}.pub")
    except (OSError, ValueError):
        faults.append(f"its public key {site}.pub is not in known-sites")
    except FundusgenError as error:
        faults.append(error.found)
    else:
        faults += _not_sound(receipts, key)
    last = receipts[-1] if receipts else None
    return SiteProof(
        site, len(rounds), len(own),
        last.declared_patients if last else 0,
        last.epsilon_total if last else None,
        last.delta if last else None,
        tuple(sorted({receipt.noise for receipt in own})),
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
            elif not covers(receipt.spent, [receipt.event]):
                # What the first one left out, no later one would miss.
                faults.append(f"receipt {receipt.sequence} does not count its own event")
            if place == len(receipts) - 1:
                require_epsilon(receipt)
        except ReceiptError as error:
            faults.append(error.found)
    return faults
