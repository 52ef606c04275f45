"""What `fundusgen evaluate` writes of a good generator, as a test may read or change it."""

from typing import Any


def estimate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def evaluation_content(**changes: Any) -> dict[str, Any]:
    """Of a generator that may leave; `changes` replace whole entries."""
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
    content = {
        "format": "fundusgen-evaluation-1", "made_at": "2026-01-01T00:00:00+00:00",
        "made_by": "0.1.0",
        "subject": {"kind": "vae", "study_id": "retina", "study_hash": "5" * 64,
                    "digest": "9" * 64, "facts": {}},
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
        "model_attack": {**attack, "name": "bound"}, "attacked_digest": "",
        "remarks": [], "seconds": {"realism": 10.0},
    }  # fmt: skip
    return {**content, **changes}
