"""How a study's epsilon is best split between votes and DP-SGD, tried on phantom hospitals.

Run as `python -m simulations.benchmarks.budget_share --out DIR`; goes on where it stopped. The
default of `privacy.votes_share` is chosen by this table, and not by any photograph of a patient: a
study with both stages is held on the patients of `phantom_hospitals`, and what is measured is the
KID of the winners, of the model refitted on them, and of the model after DP-SGD, to patients who
took no part.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fundusgen.storage import write_atomically
from server.postprocess import Postprocess
from simulations.benchmarks.phantom_hospitals import phantom_hospitals_and_colours
from simulations.benchmarks.quality_context import Context
from simulations.benchmarks.quality_gan_makers import voted_server
from simulations.benchmarks.quality_makers import winners
from simulations.benchmarks.quality_stages import after_votes, drawn, train

_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def _vae(context: Context, epsilon: float, seed: int, share: float) -> Postprocess:
    privacy = {"votes_share": share}
    return after_votes(context, epsilon, seed, dpsgd={}, refit=True, privacy=privacy)


def _gan(context: Context, epsilon: float, seed: int, share: float) -> Postprocess:
    return voted_server(context, epsilon, seed, privacy={"votes_share": share})


MODELS: dict[str, Callable[[Context, float, int, float], Postprocess]] = {"vae": _vae, "gan": _gan}


def measure(
    out: Path, models: Sequence[str], epsilon: float, shares: Sequence[float], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Hold a study with every share in turn.

    The table does not know the code that made it: delete it when makers change.
    """
    context, kids_of = phantom_hospitals_and_colours(out)
    table = out / "budget-share.json"
    found: list[dict[str, Any]] = json.loads(table.read_bytes()) if table.is_file() else []
    for seed in seeds:
        for share in shares:
            for model in models:
                setting = {"model": model, "epsilon": epsilon, "votes_share": share, "seed": seed}
                if any(setting.items() <= row.items() for row in found):
                    continue
                server = MODELS[model](context, epsilon, seed, share)
                kids = {"winners": kids_of(winners(context, server))}
                kids["refitted"] = kids_of(drawn(context, server.study, server.state.average))
                train(context, server, epsilon)
                kids["tuned"] = kids_of(drawn(context, server.study, server.state.drawn_from))
                found.append({**setting, "kid": kids})
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
                write_atomically(table, json.dumps(found, indent=2).encode())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.budget_share")
    parser.add_argument("--out", type=Path, default=Path("runs/budget-share"))
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--shares", nargs="+", type=float, default=_SHARES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options.out, options.models, options.epsilon, options.shares, options.seeds)
