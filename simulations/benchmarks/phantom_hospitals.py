"""Hospitals of phantoms, on which settings are chosen: no photograph of a patient is in them.

As no hospital is quite like any phantom, each of the three cameras develops its pictures in a way
that the simulator does not know: another gamma for each colour, and another blur.

N images, S side in pixels, C colours.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fundusgen.evaluation.colour import ColourFeatures
from fundusgen.evaluation.features import FeatureExtractor
from fundusgen.evaluation.imagenet import ImageNetFeatures
from fundusgen.phantom.site import write_site_folder
from simulations.benchmarks.quality_context import Context, Row, mixed_labels
from simulations.benchmarks.quality_hospitals import Settings, load_hospitals
from simulations.benchmarks.quality_judge import Judge

# Camera, gammas of red, green and blue, and radius of the blur in pixels of 128.
_HOSPITALS = (
    ("dusk", (0.9, 1.15, 1.3), 0.7),
    ("honey", (1.15, 0.95, 0.8), 0.5),
    ("amber", (1.0, 1.2, 1.1), 0.9),
)
_PATIENTS, _SIZE_PX, _IMAGES = 1000, 64, 1000


def phantom_hospitals(out: Path) -> tuple[Context, Callable[[NDArray[np.uint8]], float]]:
    """Draw the hospitals that are not there yet.

    Args:
        out: Folder for hospitals, framed images and the makers' own files.

    Returns:
        What makers of images are given, and a function that gives the KID x1000, by ImageNet
        features, of images (N, S, S, 3) to the patients whom no maker sees.
    """
    context, kids_of = _judged(out, [ImageNetFeatures()])
    return context, lambda images_NSSC: kids_of(images_NSSC)["imagenet"]


def phantom_hospitals_and_colours(
    out: Path,
) -> tuple[Context, Callable[[NDArray[np.uint8]], dict[str, float]]]:
    """As `phantom_hospitals`, with the KID x1000 by `imagenet` and by `colour` features."""
    return _judged(out, [ImageNetFeatures(), ColourFeatures()])


def _judged(
    out: Path, extractors: Sequence[FeatureExtractor]
) -> tuple[Context, Callable[[NDArray[np.uint8]], dict[str, float]]]:
    data = out / "hospitals"
    for number, (camera, gammas, blur_px) in enumerate(_HOSPITALS):
        if not (data / camera).is_dir():
            _write_hospital(data / camera, number, camera, gammas, blur_px)
    settings = Settings(data, out, out / "cache", _IMAGES, _SIZE_PX, replicates=50)
    hospitals = load_hospitals(settings)
    judge = Judge(settings, hospitals, extractors)
    (out / "work").mkdir(exist_ok=True)

    def kids_of(images_NSSC: NDArray[np.uint8]) -> dict[str, float]:
        metrics = judge.record(Row("tried", None, 0, images_NSSC))["metrics"]
        return {name: 1000 * float(found["kid"]["value"]) for name, found in metrics.items()}

    return Context(hospitals.train, _SIZE_PX, mixed_labels(_IMAGES), out / "work"), kids_of


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
