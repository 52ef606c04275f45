"""How votes are best held: rounds, variation and candidates, tried on phantom hospitals.

Run as `python -m simulations.benchmarks.vote_settings --out DIR`. The defaults of a study's votes
are chosen by this table, and not by any photograph of a patient: the patients are those of
`phantom_hospitals`, and the candidates are phantoms of all cameras. What is measured is the KID of
the winners to patients who did not vote, by ImageNet features.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fundusgen.storage import write_atomically
from simulations.benchmarks.phantom_hospitals import phantom_hospitals
from simulations.benchmarks.quality_makers import voted

_BASE: dict[str, Any] = {
    "rounds": 4, "candidates": 1000, "nearest": 1, "variation": 0.3, "trusted_ancestors": 2.0,
    "appearance_share": 0.2,
}  # fmt: skip
# One setting is changed at a time.
_TRIED: dict[str, Sequence[Any]] = {
    "rounds": (2, 4, 8),
    "variation": (0.15, 0.3, 0.5),
    "nearest": (1, 3),
    "candidates": (300, 1000, 2000, 4000),
    "trusted_ancestors": (0.0, 2.0, 6.0, 20.0),
    "appearance_share": (0.0, 0.1, 0.2, 0.4),
}


def measure(out: Path, epsilons: Sequence[float]) -> list[dict[str, Any]]:
    """Hold votes by every setting in turn and measure the winners; goes on where it stopped.

    The table does not know the code that made it: delete it when makers change.
    """
    context, kid_of = phantom_hospitals(out)
    table = out / "vote-settings.json"
    found: list[dict[str, Any]] = json.loads(table.read_bytes()) if table.is_file() else []
    known = [{name: row[name] for name in ("epsilon", *_BASE)} for row in found]
    tried = [{**_BASE, name: value} for name, values in _TRIED.items() for value in values]
    for votes, epsilon in itertools.product(_distinct(tried), epsilons):
        if {"epsilon": epsilon, **votes} in known:
            continue
        images_NSSC = voted(context, epsilon, 0, votes)
        found.append({"epsilon": epsilon, **votes, "kid": kid_of(images_NSSC)})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        write_atomically(table, json.dumps(found, indent=2).encode())
    return found


def _distinct(tried: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(t.items())) for t in tried)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.vote_settings")
    parser.add_argument("--out", type=Path, default=Path("runs/vote-settings"))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 8.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options.out, options.epsilons)
