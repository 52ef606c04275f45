"""A finished run with a generator, signed receipts and an evaluation, without any training."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from evaluation_content import evaluation_content
from safetensors.numpy import load_file, save

from fundusgen.models.factory import build_model
from fundusgen.models.generator import TRAINING_FILE, WEIGHTS_FILE, save_generator
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.keys import public_text
from fundusgen.privacy.receipt_folder import keep_receipt
from fundusgen.privacy.receipts import Receipt
from fundusgen.run_folder import RunFolder
from fundusgen.storage import write_json
from fundusgen.study import Study, dump_study

STUDY = Study.model_validate(
    {
        "study_id": "retina",
        "conditions": ["normal", "dr2", "amd"],
        "image_size": 32,
        "model": {"width": 4, "latent": 5},
        "privacy": {"target_epsilon": 8, "target_delta": 1e-5},
        "federation": {"rounds": 2},
    }
)
EVENT = Event("subsampled_gaussian", 1.5, 0.1, 4)
KEYS = {name: ec.derive_private_key(0x5EED + n, ec.SECP384R1()) for n, name in enumerate("ab")}
DELTA = 1e-5


def finished_run(path: Path) -> RunFolder:
    """Two sites, `a` and `b`, that answered two rounds each."""
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.study_file.write_text(dump_study(STUDY))
    rng = np.random.default_rng(0)
    weights = {
        name: (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in build_model(STUDY).state_dict().items()
    }
    save_generator(run.generator, STUDY, weights, {"rounds": 2})
    run.known_sites.mkdir()
    for site, key in KEYS.items():
        (run.known_sites / f"{site}.pub").write_text(public_text(key.public_key()) + "\n")
        previous = "0" * 64
        for round_number in (1, 2):
            receipt = receipt_of(site, round_number, previous)
            keep_receipt(run.receipts, receipt)
            previous = receipt.digest
    with run.metrics_file.open("w") as lines:
        for round_number in (1, 2):
            sites = [{"site": site, "state": "accepted", "epsilon": 1.0} for site in KEYS]
            lines.write(json.dumps({"round": round_number, "sites": sites}) + "\n")
    return run


def receipt_of(site: str, round_number: int, previous: str, **changes: Any) -> Receipt:
    spent = (replace(EVENT, steps=4 * round_number),)
    values = {
        "site": site, "study_id": STUDY.study_id, "study_hash": STUDY.study_hash,
        "round_number": round_number, "stage": "dpsgd", "request_id": "ab" * 16, "event": EVENT,
        "spent": spent, "epsilon_total": epsilon(spent, DELTA), "delta": DELTA,
        "declared_patients": 300, "noise": "secure", "payload_digest": "d" * 64,
        "policy_hash": "a" * 64, "code_hash": "c" * 64, "sequence": round_number,
        "previous": previous,
    }  # fmt: skip
    return Receipt(**{**values, **changes}).signed(KEYS[site])


def evaluation_values_of(run: RunFolder) -> dict[str, Any]:
    """What `fundusgen evaluate` would have written, of a generator that may leave."""
    values = evaluation_content()
    digest = hashlib.sha256((run.generator / WEIGHTS_FILE).read_bytes()).hexdigest()
    values["subject"] |= {"study_hash": STUDY.study_hash, "digest": digest}
    values["attacked_digest"] = rest_digest_of(run)
    return values


def rest_digest_of(run: RunFolder) -> str:
    """SHA-256 of the weights that do not draw."""
    return hashlib.sha256(save(load_file(run.generator / TRAINING_FILE))).hexdigest()


def write_evidence(run: RunFolder, values: dict[str, Any] | None = None) -> None:
    """Lay evaluation and audit of the mechanism where `fundusgen release` looks for them."""
    folder = run.path / "evaluation"
    write_json(folder / "evaluation.json", values or evaluation_values_of(run))
    (folder / "evaluation.html").write_text("<p>figures</p>")
    write_json(run.path / "mechanism" / "mechanism.json", mechanism_values())


def mechanism_values() -> dict[str, Any]:
    """What `fundusgen audit mechanism` would have written, as far as the gate reads it."""
    audited = [{"stage": stage, "holds": True, "sufficient": True} for stage in ("dpsgd", "votes")]
    return {"format": "fundusgen-mechanism-1", "holds": True, "sufficient": True,
            "noise": "secure", "mechanisms": audited}  # fmt: skip
