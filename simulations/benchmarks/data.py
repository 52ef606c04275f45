"""How fast photographs become framed images: decoding and framing on one core.

Run as `python -m simulations.benchmarks.data`. The files are drawn here, with the noise and
detail that make real photographs slow to decode. Where FUNDUSGEN_REAL_DATA names a folder of
sites, their photographs are measured too.
"""

import csv
import io
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fundusgen.data.cache import framed_images
from fundusgen.data.manifest import ManifestSettings, read_manifest, write_manifest
from fundusgen.data.patients import PatientDataset
from fundusgen.data.preparation import prepare_image

SIZE_PX = 64
MIN_SECONDS = 2.0
SITE_IMAGES = 200


def run() -> list[dict[str, Any]]:
    """Measure data preparation.

    Returns:
        One dictionary a figure: `name`, `value`, `unit`, `target` (None without one) and `met`
        (None without a target).
    """
    small = [_photograph(512, 340, seed) for seed in range(8)]
    large = [_photograph(4288, 2848, seed) for seed in range(2)]
    results = [
        _row("512 px JPEG to 64 px, one core", _rate(small, SIZE_PX), "images/s", 60.0),
        _row("12-megapixel JPEG to 64 px, one core", _rate(large, SIZE_PX), "images/s", 15.0),
        _row("12-megapixel JPEG to 256 px, one core", _rate(large, 256), "images/s"),
        *_site(small),
    ]
    folder = os.environ.get("FUNDUSGEN_REAL_DATA")
    return results + (_real(Path(folder)) if folder else [])


def _photograph(width: int, height: int, seed: int) -> bytes:
    """A disc of smooth colours, fine lines and sensor noise, cut at top and bottom, as JPEG."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    inside = np.hypot(x - width / height / 2, y - 0.5) < 0.6
    lines = np.maximum(np.sin(60 * x + 9 * np.sin(7 * y + seed)), 0) ** 8
    light = 0.8 - 0.3 * np.hypot(x - 0.9, y - 0.4) - 0.2 * lines
    image = 255 * light[..., None] * np.array([0.9, 0.5, 0.25], np.float32)
    image += rng.standard_normal((height, width, 1), dtype=np.float32) * 3
    stream = io.BytesIO()
    pixels = np.where(inside[..., None], np.clip(image, 0, 255), 2).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _rate(contents: list[bytes], size_px: int) -> float:
    """Images per second of processor time, so that other work on the machine counts little."""
    prepare_image(contents[0], size_px)
    done, start = 0, time.process_time()
    while time.process_time() - start < MIN_SECONDS:
        for content in contents:
            prepare_image(content, size_px)
            done += 1
    return done / (time.process_time() - start)


def _site(contents: list[bytes]) -> list[dict[str, Any]]:
    """A whole site: building its cache, opening it again, and drawing views from it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        for i in range(SITE_IMAGES):
            # Bytes after the end of a JPEG make each file another one.
            content = contents[i % len(contents)] + str(i).encode()
            (folder / f"{i}.jpg").write_bytes(content)
            rows.append({"file": f"{i}.jpg", "patient_id": f"p{i // 2}"})
        write_manifest(folder / "manifest.csv", rows)
        reading = read_manifest(ManifestSettings(folder / "manifest.csv", folder))
        build_s, framed = _timed(reading.rows, folder / "cache")
        open_s, framed = _timed(reading.rows, folder / "cache")
        conditions = np.zeros(len(framed.rows), np.int64)
        dataset = PatientDataset(
            framed.images_NHWC, conditions, [row.patient_id for row in framed.rows]
        )
        return [
            _row("building a cache, one process", SITE_IMAGES / build_s, "images/s"),
            _row("opening a cache", SITE_IMAGES / open_s, "images/s"),
            _row("views for training", _view_rate(dataset), "images/s"),
        ]


def _timed(rows: Any, cache_dir: Path) -> tuple[float, Any]:
    start = time.perf_counter()
    framed = framed_images(rows, SIZE_PX, cache_dir)
    return time.perf_counter() - start, framed


def _view_rate(dataset: PatientDataset) -> float:
    rng = np.random.default_rng()
    everyone: NDArray[np.int64] = np.arange(len(dataset))
    start = time.perf_counter()
    for _ in range(10):
        dataset.views(everyone, 4, rng)
    return 10 * 4 * len(dataset) / (time.perf_counter() - start)


def _real(folder: Path) -> list[dict[str, Any]]:
    results = []
    for manifest in sorted(folder.glob("*/manifest.csv")):
        with manifest.open(newline="") as stream:
            files = [row["file"] for row in csv.DictReader(stream)][:100]
        contents = [(manifest.parent / file).read_bytes() for file in files]
        results.append(_row(f"real, {manifest.parent.name}", _rate(contents, SIZE_PX), "images/s"))
    raw = [path.read_bytes() for path in sorted((folder / "raw_formats").glob("*.jpg"))]
    if raw:
        results.append(_row("real, originals of 10 to 12 megapixels", _rate(raw, 64), "images/s"))
    return results


def _row(name: str, value: float, unit: str, target: float | None = None) -> dict[str, Any]:
    met = None if target is None else value >= target
    return {"name": name, "value": value, "unit": unit, "target": target, "met": met}


def main() -> None:
    for row in run():
        target = "" if row["target"] is None else f"target {row['target']:g}"
        met = {True: "met", False: "MISSED", None: ""}[row["met"]]
        print(f"{row['name']:<42}{row['value']:>10.1f} {row['unit']:<10}{target:<12}{met}")


if __name__ == "__main__":
    main()
