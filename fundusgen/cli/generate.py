"""`fundusgen generate`: draw images from a finished generator into a folder."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from fundusgen.data.manifest import write_manifest
from fundusgen.errors import RunError
from fundusgen.models.generator import MODEL_FILE, Generator
from fundusgen.run_folder import RunFolder

# zlib's fastest level: at 64 px a PNG grows by a tenth and takes half the time.
_PNG_LEVEL = 1
_WRITERS = 2


def generate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of its generator.")],
    condition: Annotated[str, typer.Option(help="What to draw, such as normal, dr3 or amd.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; must be new or empty.")],
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
) -> None:
    """Draw images of one condition, with a manifest.csv that lists them."""
    generator = Generator.load(run if (run / MODEL_FILE).is_file() else RunFolder(run).generator)
    generator.condition_index(condition)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"{out} is there already and not empty",
            expected="a new or empty folder",
            remedy="Choose another --out",
        )
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    # The manifest comes last: a folder without one was cut short.
    with ThreadPoolExecutor(_WRITERS) as pool:
        write_manifest(
            out / "manifest.csv", _written(generator, condition, count, seed, images, pool)
        )
    typer.echo(f"{count} images of {condition} in {images}, listed in {out / 'manifest.csv'}")


def _written(
    generator: Generator,
    condition: str,
    count: int,
    seed: int,
    folder: Path,
    pool: ThreadPoolExecutor,
) -> Iterator[dict[str, str | int | None]]:
    """Write the images a batch at a time and yield each one's row of the manifest."""
    number = 0
    labels = labels_of(condition)
    for drawn in generator.draw(condition, count, seed):
        names = [f"{condition}-{seed}-{number + i:06d}" for i in range(len(drawn.eyes))]
        paths = [folder / f"{name}.png" for name in names]
        list(pool.map(_save, drawn.images_NSSC, paths))
        for name, eye, path in zip(names, drawn.eyes, paths, strict=True):
            yield {"file": f"images/{path.name}", "patient_id": name, "eye": eye, **labels}
        number += len(names)


def labels_of(condition: str) -> dict[str, str | int | None]:
    """The manifest's labels of a condition, so that `condition_of` gives it back."""
    if condition == "normal":
        return {"diagnosis": "normal", "dr_grade": 0}
    if condition.startswith("dr"):
        return {"diagnosis": "dr", "dr_grade": int(condition[2:])}
    return {"diagnosis": condition, "dr_grade": None}


def _save(image_SSC: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(image_SSC).save(path, compress_level=_PNG_LEVEL)
