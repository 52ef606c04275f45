"""What makes a GAN learn under noise: settings tried on phantom hospitals, one at a time.

Run as `python -m simulations.benchmarks.gan_settings --out DIR`; goes on where it stopped. A GAN
that has learned from phantoms is trained by DP-SGD on the patients of `phantom_hospitals`, and what
is measured is the KID of what it then draws to patients who took no part, by ImageNet features and
by colour. The defaults of a study's GAN were chosen on these hospitals, and not by any photograph
of a patient. `--epsilon none` trains without noise, which tells what holds a GAN back besides.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fundusgen.storage import write_atomically
from simulations.benchmarks.phantom_hospitals import phantom_hospitals_and_colours
from simulations.benchmarks.quality_gan_makers import gan_prior, tuned_server
from simulations.benchmarks.quality_stages import drawn

_WHOLE: dict[str, Any] = {"private": ["discriminator.*"]}
# What is tried besides a study's defaults: of the model, of the stage, of the federation.
_TRIED: dict[str, dict[str, dict[str, Any]]] = {
    "defaults": {},
    "waits for nothing": {"model": {"accuracy_floor": 0.0}},
    "2 steps of the generator": {"model": {"generator_steps": 2}},
    "16 steps of the generator": {"model": {"generator_steps": 16}},
    "phantoms have no say": {"model": {"phantoms_say": 0.0}},
    "phantoms have twice the say": {"model": {"phantoms_say": 2.0}},
    "all of the discriminator": {"model": _WHOLE},
    "all of the discriminator, phantoms have no say": {"model": {**_WHOLE, "phantoms_say": 0.0}},
    "all of the discriminator, phantoms have no say, 8 steps a round": {
        "model": {**_WHOLE, "phantoms_say": 0.0},
        "dpsgd": {"steps_per_round": 8, "sample_rate": 0.05},
    },
    # With `--epsilon none --rounds 480`: the steps, rates and networks of ordinary training.
    "as ordinary training": {
        "model": {
            **_WHOLE, "phantoms_say": 0.0, "accuracy_floor": 0.0, "generator_steps": 1,
            "generator_learning_rate": 7e-4,
        },
        "dpsgd": {"sample_rate": 0.1},
        "federation": {"server_learning_rate": 7e-4},
    },
    "votes of patches alone": {
        "model": {"private": ["discriminator.patch_vote.*", "discriminator.embedding.*"]}
    },
    "hinge loss": {"model": {"loss": "hinge"}},
    "ensemble": {"model": {"ensemble": True}},
    "generator at the sites": {"model": {"generator": "sites"}},
    "a tenth of the patients a step": {"dpsgd": {"sample_rate": 0.1}},
    "half of the patients a step": {"dpsgd": {"sample_rate": 0.5}},
    "4 steps a round": {"dpsgd": {"steps_per_round": 4}},
    "noise out of Adam's moments": {"federation": {"server_optimizer": "adam_bc"}},
    "without the moving average": {"federation": {"ema_decay": 0.0}},
    "32 drawn images of a condition": {"model": {"drawn": 32}},
    "average without Adam": {
        "federation": {"server_optimizer": "average"}, "dpsgd": {"learning_rate": 0.05},
    },
}  # fmt: skip


def measure(
    out: Path, epsilon: float | None, names: Sequence[str], rounds: int = 60
) -> list[dict[str, Any]]:
    """Train with every setting in turn, without noise where epsilon is None, and measure.

    The table does not know the code that made it: delete it when makers change.
    """
    context, kids_of = phantom_hospitals_and_colours(out)
    table = out / "gan-settings.json"
    found: list[dict[str, Any]] = json.loads(table.read_bytes()) if table.is_file() else []
    known = {(row["setting"], row["epsilon"], row["rounds"]) for row in found}
    for name in ("the prior alone", *names):
        prior = name == "the prior alone"
        wanted, taken = (None, 0) if prior else (epsilon, rounds)
        if (name, wanted, taken) in known:
            continue
        if prior:
            watched, images_NSSC = [], gan_prior(context, None, 0)
        else:
            server = tuned_server(context, wanted, 0, rounds=taken, **_TRIED[name])
            watched = [entry["generator"] for entry in server.run.metrics()]
            images_NSSC = drawn(context, server.study, server.state.drawn_from)
        found.append(
            {
                "setting": name,
                "epsilon": wanted,
                "rounds": taken,
                "kid": kids_of(images_NSSC),
                "diversity": [entry["diversity"] for entry in watched],
                "collapsed": sum(entry["collapsed"] for entry in watched),
            }
        )
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        write_atomically(table, json.dumps(found, indent=2).encode())
    return found


def _epsilon(said: str) -> float | None:
    return None if said == "none" else float(said)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.gan_settings")
    parser.add_argument("--out", type=Path, default=Path("runs/gan-settings"))
    parser.add_argument("--epsilon", type=_epsilon, default=8.0, help="a number, or none")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=tuple(_TRIED), default=tuple(_TRIED))
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options.out, options.epsilon, options.only, options.rounds)
