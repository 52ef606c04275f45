"""How long `fundusgen evaluate` and `fundusgen audit mechanism` take, all questions, on two cores.

Phantom hospitals stand in for photographs, and a network that was not trained for the generator:
what the images show does not change the time.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fundusgen.models.factory import build_model
from fundusgen.models.generator import save_generator
from fundusgen.phantom.site import write_site_folder
from fundusgen.study import load_study
from simulations.benchmarks.child import Row, row
from simulations.benchmarks.generation import CORES, REAL_STUDY

# About 1,000 and 2,000 photographs: most patients have both eyes.
TESTED, TRAINED = 530, 1060
_CODE = "from fundusgen.cli.main import main; main()"


def run() -> list[Row]:
    """Measure both commands as a user starts them, with the start of Python."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _save_untrained(folder / "generator")
        counts = {
            name: write_site_folder(
                folder / name, patients=patients, seed=seed, size_px=64, workers=CORES
            )
            for seed, (name, patients) in enumerate((("test", TESTED), ("train", TRAINED)))
        }
        evaluating_s = _seconds(
            "evaluate", folder / "generator", "--real", folder / "test",
            "--train", folder / "train", "--separate-ids", "--out", folder / "report",
        )  # fmt: skip
        report = json.loads((folder / "report" / "evaluation.json").read_text())
        auditing_s = _seconds("audit", "mechanism", "--seed", "0")
    what = f"{report['generated']['images']:,} drawn, {counts['test']:,} real, "
    what += f"{counts['train']:,} trained on"
    return [
        row(f"evaluate, all questions: {what}", evaluating_s / 60, "min", 10.0),
        *(
            row(f"evaluate, {name}", seconds / 60, "min")
            for name, seconds in report["seconds"].items()
        ),
        row("audit mechanism, three mechanisms of 2,000 canaries", auditing_s / 60, "min", 2.0),
    ]


def _seconds(*arguments: object) -> float:
    """Seconds of the clock that a command takes; a finding of the audit is no failure here."""
    start = time.perf_counter()
    command = [sys.executable, "-c", _CODE, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 2):
        raise subprocess.CalledProcessError(done.returncode, command)
    return time.perf_counter() - start


def _save_untrained(folder: Path) -> None:
    study = load_study(REAL_STUDY)
    rng = np.random.default_rng(0)
    weights = {
        name: (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in build_model(study).state_dict().items()
    }
    save_generator(folder, study, weights, {"rounds": 0})
