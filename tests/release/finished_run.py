"""A finished run with a generator, signed receipts and an evaluation, without any training."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.models.factory import build_model
from fundusgen.models.generator import WEIGHTS_FILE, save_generator
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


def estimate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def evaluation_values_of(run: RunFolder) -> dict[str, Any]:
    """What `fundusgen evaluate` would have written, of a generator that may leave."""
    digest = hashlib.sha256((run.generator / WEIGHTS_FILE).read_bytes()).hexdigest()
    row = {"images": 500, "compared": 400, "frechet": estimate(9), "precision": estimate(0.8),
           "recall": estimate(0.4), "density": estimate(0.7)}  # fmt: skip
    rows = {
        "generated": {**row, "kid": estimate(0.10), "coverage": estimate(0.4)},
        "phantoms": {**row, "kid": estimate(0.30), "coverage": estimate(0.2)},
        "real": {**row, "kid": estimate(0.0, 0.002), "coverage": estimate(0.97)},
    }
    training = {"real_patients": 500, "real_images": 900, "synthetic_images": 2000}
    figure = {"task": "referable", "classifier": "linear_imagenet", "score": "auc",
              "training": training, "share": 1.0, "change": None}  # fmt: skip
    attack = {"name": "distance", "auc": estimate(0.51), "members": 500, "non_members": 400,
              "true_positive_rate": estimate(0.01, 0.01), "p_value": 0.3, "caveat": "",
              "true_positive_upper": 0.03}  # fmt: skip
    copying = {which: {"share": estimate(0.5), "p_value": 0.4, "patients": 400}
               for which in ("share", "closest_share")}  # fmt: skip
    for which in ("test", "mirrored"):
        copying[which] = {"c_t": 1.0, "z": 1.0, "p_value": 0.8, "cells": 3, "skipped": 0,
                          "covered": 1.0}  # fmt: skip
    return {
        "format": "fundusgen-evaluation-1", "made_at": "2026-01-01T00:00:00+00:00",
        "made_by": "0.1.0",
        "subject": {"kind": "vae", "study_id": "retina", "study_hash": STUDY.study_hash,
                    "digest": digest, "facts": {}},
        "size_px": 32, "settings": {"seed": 0, "replicates": 400},
        "real": {"images": 800, "patients": 400, "images_of": {"normal": 800}},
        "real_digest": "e" * 64,
        "train": {"images": 900, "patients": 500, "images_of": {"normal": 900}},
        "train_digest": "f" * 64,
        "generated": {"images": 2000, "patients": 2000, "images_of": {"normal": 2000}},
        "not_known": ["glaucoma"], "unusable": 3,
        "extractors": [{"name": "imagenet", "version": "1", "digest": "1" * 64}],
        "realism": [{"extractor": "imagenet", "version": "1", "digest": "1" * 64,
                     "rows": {"overall": rows}}],
        "diversity": {
            name: {"vendi": estimate(v), "nearest": estimate(9), "ms_ssim": estimate(0.5),
                   "images": 300}
            for name, v in (("generated", 4.0), ("real", 6.0))
        },
        "anatomy": None,
        "usefulness": {
            "tasks": [{"name": "referable", "classes": [["normal"], ["dr2"]],
                       "scores": ["auc"], "patients": [300, 100], "images": [600, 200]}],
            "figures": [
                {**figure, "regime": "real", "estimate": estimate(0.8)},
                {**figure, "regime": "synthetic", "share": 0.0, "estimate": estimate(0.7),
                 "change": estimate(-0.1)},
                {**figure, "regime": "real_and_synthetic", "estimate": estimate(0.81),
                 "change": estimate(0.01)},
            ],
            "left_out": [{"task": "amd", "regime": None, "reason": "3 patients"}],
        },
        "leakage": [{"extractor": "imagenet", "copying": copying, "copying_control": copying,
                     "attacks": [{"attack": attack, "control": attack}]}],
        "model_attack": {**attack, "name": "bound"},
        "remarks": [], "seconds": {"realism": 10.0},
    }  # fmt: skip


def write_evidence(run: RunFolder, values: dict[str, Any] | None = None) -> None:
    """Lay evaluation and audit of the mechanism where `fundusgen release` looks for them."""
    folder = run.path / "evaluation"
    write_json(folder / "evaluation.json", values or evaluation_values_of(run))
    (folder / "evaluation.html").write_text("<p>figures</p>")
    write_json(run.path / "mechanism" / "mechanism.json", {"holds": True})
