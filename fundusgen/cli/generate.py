"""`fundusgen generate`: draw images from a finished generator into a folder."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from fundusgen.data.manifest import write_manifest
from fundusgen.errors import RunError
from fundusgen.models.generator import MODEL_FILE, Generator, Plan
from fundusgen.phantom.render import check_size
from fundusgen.run_folder import RunFolder
from fundusgen.training.population import VotedPopulation, eye_of, load_population

# zlib's fastest level: at 64 px a PNG grows by a tenth and takes half the time.
_PNG_LEVEL = 1
_PHANTOMS = 64
_THREADS = min(8, os.cpu_count() or 1)
_BATCHES_AHEAD = 2 * _THREADS
MANIFEST = "manifest.csv"


def generate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of its generator.")],
    condition: Annotated[str, typer.Option(help="What to draw, such as normal, dr3 or amd.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; must be new or empty.")],
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    phantoms: Annotated[
        bool,
        typer.Option(
            "--phantoms",
            help="Draw phantoms like those that patients voted for, not the network's images.",
        ),
    ] = False,
    size_px: Annotated[
        int | None,
        typer.Option(help="Side in pixels, of phantoms only.", show_default="the study's"),
    ] = None,
) -> None:
    """Draw images of one condition, with a manifest.csv that lists them.

    After a study with votes there are two generators: the network, and the phantoms that won, which
    have all the detail of the simulator and can be drawn at any size.
    """
    folder = run if (run / MODEL_FILE).is_file() else RunFolder(run).generator
    write = _writer(folder, condition, phantoms=phantoms, size_px=size_px)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"{out} is there already and not empty",
            expected="a new or empty folder",
            remedy="Choose another --out",
        )
    try:
        write(count, seed, out)
    except OSError as error:
        raise RunError(
            f"{out} cannot be written: {error.strerror}",
            expected="a folder with room that this user may write",
            remedy="Free space, correct its permissions, or choose another --out",
        ) from error
    typer.echo(f"{count} images of {condition} in {out / 'images'}, listed in {out / MANIFEST}")


def _writer(
    folder: Path, condition: str, *, phantoms: bool, size_px: int | None
) -> Callable[[int, int, Path], None]:
    """What writes the images, with everything found to be right that can be before the first."""
    if phantoms:
        population = load_population(folder)
        population.place(condition)
        size = population.image_size if size_px is None else size_px
        check_size(size)
        return lambda count, seed, out: write_phantoms(
            population, condition, count, seed, out, size
        )
    if size_px is not None:
        raise RunError(
            "--size-px was given without --phantoms",
            expected="the network's own size, which is the study's",
            remedy="Add --phantoms, or leave out --size-px",
        )
    generator = Generator.load(folder)
    generator.condition_index(condition)
    return lambda count, seed, out: write_images(generator, condition, count, seed, out)


def write_phantoms(
    population: VotedPopulation, condition: str, count: int, seed: int, out: Path, size_px: int
) -> None:
    """Write phantoms like the winners of a vote as PNGs and, after the last, the manifest.

    Args:
        population: What is drawn from.
        condition: One of its conditions.
        count: Number of images, from 1.
        seed: The same seed gives the same files.
        out: Folder to write to; made if absent.
        size_px: Side of the images.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    places_N = np.full(count, population.place(condition), dtype=np.int64)
    lineages = population.lineages(places_N, seed)
    labels, rows = labels_of(condition), []
    for start in range(0, count, _PHANTOMS):
        batch = lineages[start : start + _PHANTOMS]
        images_NSSC = population.images(batch, size_px=size_px, mirror_left=False)
        for number, (image_SSC, lineage) in enumerate(
            zip(images_NSSC, batch, strict=True), start=start
        ):
            name = f"{condition}-{seed}-{number:06d}"
            file = f"images/{name}.png"
            Image.fromarray(image_SSC).save(out / file, compress_level=_PNG_LEVEL)
            rows.append({"file": file, "patient_id": name, "eye": eye_of(lineage), **labels})
    write_manifest(out / MANIFEST, rows)


def write_images(generator: Generator, condition: str, count: int, seed: int, out: Path) -> None:
    """Write PNGs and, after the last, the manifest: a folder without one was cut short.

    Memory does not grow with `count`. Torch's own threads are set to one for the whole process:
    each of our threads draws and writes a batch of its own, which keeps the cores busier than
    sharing every small convolution would, and whose rounding depends on no number of cores.

    Args:
        generator: What draws.
        condition: One of its conditions.
        count: Number of images, from 1.
        seed: The same seed gives the same files.
        out: Folder to write to; made if absent.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with ThreadPoolExecutor(_THREADS) as pool:
        write_manifest(out / MANIFEST, _rows(generator, condition, count, seed, out, pool))


def _rows(
    generator: Generator,
    condition: str,
    count: int,
    seed: int,
    out: Path,
    pool: ThreadPoolExecutor,
) -> Iterator[dict[str, str | int | None]]:
    """Write the images and yield each one's row of the manifest, in order."""
    labels = labels_of(condition)

    def write(plan: Plan, first: int) -> list[dict[str, str | int | None]]:
        drawn, rows = generator.drawn(plan), []
        for number, (image_SSC, eye) in enumerate(
            zip(drawn.images_NSSC, drawn.eyes, strict=True), start=first
        ):
            name = f"{condition}-{seed}-{number:06d}"
            file = f"images/{name}.png"
            Image.fromarray(image_SSC).save(out / file, compress_level=_PNG_LEVEL)
            rows.append({"file": file, "patient_id": name, "eye": eye, **labels})
        return rows

    # A few batches ahead at most: a queue of all of them would hold every latent vector.
    waiting: deque[Future[list[dict[str, str | int | None]]]] = deque()
    first = 0
    for plan in generator.plans(condition, count, seed):
        waiting.append(pool.submit(write, plan, first))
        first += plan.wanted
        if len(waiting) > _BATCHES_AHEAD:
            yield from waiting.popleft().result()
    for future in waiting:
        yield from future.result()


def labels_of(condition: str) -> dict[str, str | int | None]:
    """The manifest's labels of a condition, so that `condition_of` gives it back."""
    if condition == "normal":
        return {"diagnosis": "normal", "dr_grade": 0}
    if condition.startswith("dr"):
        return {"diagnosis": "dr", "dr_grade": int(condition[2:])}
    return {"diagnosis": condition, "dr_grade": None}
