"""How fast `fundusgen generate` fills a folder, and that its memory does not grow.

The real study's model with weights that were not trained, drawing and writing PNGs through the
command's own code, on at most two cores.
"""

import os
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fundusgen.cli.generate import write_images
from fundusgen.models.factory import build_model
from fundusgen.models.generator import Generator
from fundusgen.study import Study, load_study
from simulations.benchmarks.child import Row, row, rows_of_child

REAL_STUDY = Path(__file__).parent.parent / "studies" / "real.yaml"
CORES, FEW, MANY = 2, 2_000, 20_000
# The allocator's arenas wobble by some 20 MB and then stand still; images that were kept would take
# 220 MB.
GROWTH_MB = 32.0


def run() -> list[Row]:
    """Measure in a fresh process, whose peak memory is this benchmark's alone."""
    return rows_of_child(__name__, "measure")


def measure() -> list[Row]:
    """Measure in this process."""
    available = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, available)
    generator = untrained(load_study(REAL_STUDY))
    _seconds(generator, FEW)
    few_mb = peak_mb()
    wall_s, processor_s = _seconds(generator, MANY)
    cores = f"{len(available)} cores"
    return [
        row(f"images generated and written at 64 px, {cores}", MANY / wall_s, "images/s", 150.0),
        row("images generated and written, a second of one core", MANY / processor_s, "images/s"),
        row(f"growth of memory, {FEW:,} to {MANY:,} images", peak_mb() - few_mb, "MB", GROWTH_MB),
        row(f"peak memory after {MANY:,} images", peak_mb(), "MB"),
    ]


def untrained(study: Study) -> Generator:
    """A generator of a study with random weights: first weights all draw one plain colour."""
    rng = np.random.default_rng(0)
    return Generator(
        study,
        {
            name: (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
            for name, value in build_model(study).state_dict().items()
        },
    )


def peak_mb() -> float:
    """Largest resident memory of this process so far, in units of 10**6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _seconds(generator: Generator, count: int) -> tuple[float, float]:
    """Seconds of the clock and of processors that `count` images take."""
    condition = str(generator.study.conditions[0])
    with TemporaryDirectory() as folder:
        wall, processor = time.perf_counter(), time.process_time()
        write_images(generator, condition, count, 1, Path(folder))
        return time.perf_counter() - wall, time.process_time() - processor
