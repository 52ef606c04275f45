"""The cache of framed images: each photograph is decoded once, then mapped into memory.

Between framing and the patient dataset. The key covers the content of every image, their order,
the size, and the version of framing and of the decoder, so an edited image or a changed setting
never gives old pixels; labels and patients are not part of it. A file that is damaged is made
again. Two processes may build the same cache at once; both get a whole one.

The cache holds patients' pixels: its folder and files are for their owner only, and files that
nobody opened for a month are removed. `clear_cache` removes all at once, for a patient who
withdraws.
"""

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from fundusgen.data.cachefile import CacheContent, read_cache, write_cache
from fundusgen.data.digests import UNREADABLE, digest_of, digests_of
from fundusgen.data.duplicates import Repeats
from fundusgen.data.framing import FRAMING_VERSION, Pixels
from fundusgen.data.intake import read_image_file
from fundusgen.data.manifest import ImageRow
from fundusgen.data.preparation import prepare_image
from fundusgen.data.problems import RowProblem, refuse, write_problems
from fundusgen.errors import ImageError, ManifestError, SiteError

Progress = Callable[[int, int], None]

UNUSED_S = 30 * 24 * 3600
UNFINISHED_S = 24 * 3600
# What a process that was killed leaves of a file that it was writing.
UNFINISHED = ".*.tmp"
CHUNK_IMAGES = 16


@dataclass(frozen=True)
class FramedImages:
    """Framed images and the rows that they belong to, in the same order.

    Attributes:
        images_NHWC: uint8, (N, size_px, size_px, 3), mapped read-only.
        rows: The rows that were kept, N of them.
        digests: SHA-256 of the file of each.
        problems: Why the others were not, and warnings of rows that were.
    """

    images_NHWC: np.memmap[Any, np.dtype[np.uint8]]
    rows: tuple[ImageRow, ...]
    digests: tuple[str, ...]
    problems: tuple[RowProblem, ...]


def framed_images(
    rows: Sequence[ImageRow],
    size_px: int,
    cache_dir: Path,
    *,
    strict: bool = False,
    on_progress: Progress | None = None,
    workers: int = 1,
) -> FramedImages:
    """Give the framed image of each row, from the cache or by making it.

    A file with the same bytes as an earlier row's of the same patient is left out. If the earlier
    row is another patient's, both stay, each with their patient, with a warning.

    Guarantee: whether a row is kept, and its pixels, depend on its own file and on rows of its own
    patient only (`fundusgen.data.duplicates` says why).

    Args:
        rows: Usable rows of a manifest.
        size_px: Side of the framed square, in pixels.
        cache_dir: Folder of the cache; made if needed, for its owner only.
        strict: Stop if an image cannot be used, instead of leaving its row out; at warnings too.
        on_progress: Called with images done and images in all, from this process, repeats left
            out; not called when the cache has everything.
        workers: Processes that decode; 1 decodes in this process.

    Returns:
        Images, their rows, and the problems, which are also written beside the cache.

    Raises:
        ManifestError: If no image can be used, or, with `strict`, if any cannot.
        SiteError: If files change while they are read, or the folder cannot be written.
    """
    if not rows:
        raise ManifestError(
            "no usable row in the manifest",
            expected="at least one image",
            remedy="Look at the list of problems and correct the rows",
        )
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        all_digests = digests_of([row.path for row in rows], cache_dir)
        repeats = _repeats(rows, all_digests)
        used = [i for i in range(len(rows)) if i not in repeats or not repeats[i].left_out]
        used_rows, digests = [rows[i] for i in used], [all_digests[i] for i in used]
        key = _key(digests, size_px)
        path = cache_dir / f"framed-{size_px}px-{key[:20]}.bin"
        content = read_cache(path, key)
        if content is None:
            _remove_old(cache_dir)
            _build(path, key, used_rows, digests, size_px, on_progress, workers)
            content = read_cache(path, key)
        else:
            os.utime(path)
    except OSError as error:
        raise SiteError(
            f"the cache in {cache_dir} cannot be used: {error.strerror}",
            expected="a folder with room for the framed images that this user may write",
            remedy="Free space, correct its permissions, or choose another folder",
        ) from error
    told = [(rows[i], repeats[i]) for i in repeats]
    result = _result(content, path, used_rows, digests, told)
    if strict:
        refuse(result.problems)
    return result


def clear_cache(cache_dir: Path) -> int:
    """Remove every cache file of a folder, with what belongs to them.

    Processes that have one open keep it until they end.

    Returns:
        Number of files removed.
    """
    names = ("framed-*", "digests.json", "problems.json", UNFINISHED)
    files = [path for name in names for path in cache_dir.glob(name)]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def _repeats(rows: Sequence[ImageRow], digests: Sequence[str]) -> dict[int, RowProblem]:
    """Find rows whose bytes an earlier row has, by place."""
    repeats = Repeats("holds the same bytes as")
    paths: set[Path] = set()
    found: dict[int, RowProblem] = {}
    for place, (row, digest) in enumerate(zip(rows, digests, strict=True)):
        if digest.startswith(UNREADABLE):
            continue
        problem = repeats.problem(digest, line=row.line, file=row.file, patient_id=row.patient_id)
        # Two patients who name one file were warned of when the manifest was read.
        if problem is not None and (problem.left_out or row.path not in paths):
            found[place] = problem
        paths.add(row.path)
    return found


def _key(digests: Sequence[str], size_px: int) -> str:
    content = {
        "framing": FRAMING_VERSION,
        # Another version of the decoder may round otherwise.
        "decoder": PIL.__version__,
        "size_px": size_px,
        "images": list(digests),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _build(
    path: Path,
    key: str,
    rows: Sequence[ImageRow],
    digests: Sequence[str],
    size_px: int,
    on_progress: Progress | None,
    workers: int,
) -> None:
    trailer: dict[str, Any] = {"key": key, "kept": [], "problems": []}

    def usable_images() -> Iterator[Pixels]:
        tasks = [(row.path, digest, size_px) for row, digest in zip(rows, digests, strict=True)]
        for place, outcome in enumerate(_prepare_all(tasks, workers)):
            if isinstance(outcome, ImageError):
                parts = [outcome.found, outcome.expected, outcome.remedy]
                trailer["problems"].append([place, *parts])
            else:
                trailer["kept"].append(place)
                yield outcome
            if on_progress is not None:
                on_progress(place + 1, len(rows))

    write_cache(path, usable_images(), size_px, trailer)
    if not trailer["kept"]:
        path.unlink(missing_ok=True)
        refuse([_problem(entry, rows) for entry in trailer["problems"]])


def _prepare_all(
    tasks: Sequence[tuple[Path, str, int]], workers: int
) -> Iterator[Pixels | ImageError]:
    if workers <= 1 or len(tasks) < 2 * CHUNK_IMAGES:
        yield from map(_prepare, tasks)
        return
    # A forked process would inherit the locks of torch's threads, so each starts afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_prepare, tasks, chunksize=CHUNK_IMAGES)


def _prepare(task: tuple[Path, str, int]) -> Pixels | ImageError:
    path, digest, size_px = task
    try:
        content = read_image_file(path)
    except ImageError as error:
        if digest.startswith(UNREADABLE):
            return error
        raise _changed() from error
    if digest_of(content) != digest:
        raise _changed()
    try:
        return prepare_image(content, size_px)
    except ImageError as error:
        return error


def _changed() -> SiteError:
    return SiteError(
        "an image changed while the cache was being made",
        expected="images that stay as they are",
        remedy="Run again when the images are no longer being written",
    )


def _result(
    content: CacheContent | None,
    path: Path,
    rows: Sequence[ImageRow],
    digests: Sequence[str],
    repeats: Sequence[tuple[ImageRow, RowProblem]],
) -> FramedImages:
    if content is None:
        raise SiteError(
            f"the cache file {path.name} is damaged right after it was written",
            expected="the bytes that were written",
            remedy="Check the disk",
        )
    kept = tuple(rows[place] for place in content.trailer["kept"])
    unusable = [_problem(entry, rows) for entry in content.trailer["problems"]]
    # Of a row that cannot be used anyway there is nothing to warn.
    used = set(kept)
    told = [problem for row, problem in repeats if problem.left_out or row in used]
    problems = tuple(sorted(unusable + told, key=lambda problem: problem.line))
    write_problems(path.with_suffix(".problems.json"), problems)
    kept_digests = tuple(digests[place] for place in content.trailer["kept"])
    return FramedImages(content.images_NHWC, kept, kept_digests, problems)


def _problem(entry: Sequence[Any], rows: Sequence[ImageRow]) -> RowProblem:
    """Name the row by its line of today: labels and lines may change without the cache."""
    place, found, expected, remedy = entry
    row = rows[place]
    return RowProblem(row.line, "file", f"{row.file!r}: {found}", expected, remedy)


def _remove_old(cache_dir: Path) -> None:
    now = time.time()
    for pattern, age_s in (("framed-*", UNUSED_S), (UNFINISHED, UNFINISHED_S)):
        for path in cache_dir.glob(pattern):
            try:
                if path.stat().st_mtime < now - age_s:
                    path.unlink()
            except FileNotFoundError:
                # Another process was first.
                continue
