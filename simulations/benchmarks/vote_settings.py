"""How votes are best held: rounds, variation and candidates, tried on phantom hospitals.

Run as `python -m simulations.benchmarks.vote_settings --out DIR`. The defaults of a study's votes
are chosen by this table, and not by any photograph of a patient: hospitals are made of phantoms of
three cameras, and the candidates are phantoms of all six. As no hospital is quite like any phantom,
each develops its pictures in a way that the simulator does not know: another gamma for each colour,
and another blur. What is measured is the KID of the winners to patients who did not vote, by
ImageNet features.
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from fundusgen.evaluation.imagenet import ImageNetFeatures
from fundusgen.phantom.site import write_site_folder
from fundusgen.storage import write_atomically
from simulations.benchmarks.quality_context import Context, Row, mixed_labels
from simulations.benchmarks.quality_hospitals import Settings, load_hospitals
from simulations.benchmarks.quality_judge import Judge
from simulations.benchmarks.quality_makers import voted

# Camera, gammas of red, green and blue, and radius of the blur in pixels of 128.
_HOSPITALS = (
    ("dusk", (0.9, 1.15, 1.3), 0.7),
    ("honey", (1.15, 0.95, 0.8), 0.5),
    ("amber", (1.0, 1.2, 1.1), 0.9),
)
_PATIENTS, _SIZE_PX, _IMAGES = 1000, 64, 1000
_BASE: dict[str, Any] = {
    "rounds": 4, "candidates": 1000, "nearest": 1, "variation": 0.3, "trusted_ancestors": 2.0,
}  # fmt: skip
# One setting is changed at a time.
_TRIED: dict[str, Sequence[Any]] = {
    "rounds": (2, 4, 8),
    "variation": (0.15, 0.3, 0.5),
    "nearest": (1, 3),
    "candidates": (300, 1000, 2000, 4000),
    "trusted_ancestors": (0.0, 2.0, 6.0, 20.0),
}


def measure(out: Path, epsilons: Sequence[float]) -> list[dict[str, Any]]:
    """Hold votes by every setting in turn and measure the winners; goes on where it stopped.

    The table does not know the code that made it: delete it when makers change.
    """
    data = out / "hospitals"
    write_hospitals(data)
    settings = Settings(data, out, out / "cache", _IMAGES, _SIZE_PX, replicates=50)
    hospitals = load_hospitals(settings)
    judge = Judge(settings, hospitals, [ImageNetFeatures()])
    (out / "work").mkdir(exist_ok=True)
    context = Context(hospitals.train, _SIZE_PX, mixed_labels(_IMAGES), out / "work")
    table = out / "vote-settings.json"
    found: list[dict[str, Any]] = json.loads(table.read_bytes()) if table.is_file() else []
    known = [{name: row[name] for name in ("epsilon", *_BASE)} for row in found]
    tried = [{**_BASE, name: value} for name, values in _TRIED.items() for value in values]
    for votes, epsilon in itertools.product(_distinct(tried), epsilons):
        if {"epsilon": epsilon, **votes} in known:
            continue
        images_NSSC = voted(context, epsilon, 0, votes)
        record = judge.record(Row("votes", epsilon, 0, images_NSSC))
        kid = 1000 * record["metrics"]["imagenet"]["kid"]["value"]
        found.append({"epsilon": epsilon, **votes, "kid": kid})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        write_atomically(table, json.dumps(found, indent=2).encode())
    return found


def write_hospitals(data: Path) -> None:
    """Draw the hospitals that are not there yet."""
    for number, (camera, gammas, blur_px) in enumerate(_HOSPITALS):
        if not (data / camera).is_dir():
            _write_hospital(data / camera, number, camera, gammas, blur_px)


def _write_hospital(
    folder: Path, number: int, camera: str, gammas: tuple[float, ...], blur_px: float
) -> None:
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_site_folder(
        unfinished, patients=_PATIENTS, seed=900 + number, size_px=2 * _SIZE_PX,
        camera_style=camera, workers=2,
    )  # fmt: skip
    for path in (unfinished / "images").glob("*.png"):
        pixels = np.asarray(Image.open(path), dtype=np.float64) / 255
        developed = Image.fromarray((pixels ** np.array(gammas) * 255).round().astype(np.uint8))
        developed.filter(ImageFilter.GaussianBlur(blur_px)).save(path)
    unfinished.rename(folder)


def _distinct(tried: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(t.items())) for t in tried)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.vote_settings")
    parser.add_argument("--out", type=Path, default=Path("runs/vote-settings"))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 8.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options.out, options.epsilons)
