"""How near generated images come to real photographs, and how near hospitals are to each other.

Run as `python -m simulations.benchmarks.quality measure --data DIR`, with a folder of site folders,
and then `... quality render`, which writes `docs/results/quality.md`. Photographs and whatever is
computed of single ones stay in the cache, outside of what is committed. `... quality halves` writes
site folders of both halves, for `fundusgen evaluate` on a generator that `measure` has left in
`OUT/work`.

Rows are made with the training halves of the hospitals (`quality_rows`, `quality_hospitals`), and
measured against the test halves of all of them together (`quality_judge`). The yardstick is the
distance of every two hospitals from each other, by the same features at the same size; the floor is
that of training halves from test halves, which nothing can be asked to be under. `quality_page`
writes the page.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fundusgen.code import code_hash
from fundusgen.errors import FundusgenError, RunError
from fundusgen.evaluation.features import FeatureExtractor
from fundusgen.report.pictures import contact_sheet, save_png
from fundusgen.storage import replacing, write_atomically, write_json
from simulations.benchmarks.child import Row as Figure
from simulations.benchmarks.child import row as figure
from simulations.benchmarks.quality_context import Context, Row, mixed_labels
from simulations.benchmarks.quality_halves import write_halves
from simulations.benchmarks.quality_hospitals import OUT, Settings, load_hospitals
from simulations.benchmarks.quality_judge import Judge, Record, standard_extractors
from simulations.benchmarks.quality_page import (
    PICTURES,
    WANTED_EPSILONS,
    WANTED_SEEDS,
    write_page,
)
from simulations.benchmarks.quality_rows import ROWS

DOCS = Path("docs/results")
YARDSTICK_FILE, ROWS_FILE, SHEETS = "yardstick.json", "rows.jsonl", "sheets"
_SHEET_COLUMNS = 10


def measure(
    settings: Settings,
    names: Sequence[str],
    seeds: Sequence[int],
    epsilons: Sequence[float],
    extractors: Sequence[FeatureExtractor] | None = None,
    *,
    reuse: bool = False,
    docs: Path = DOCS,
) -> None:
    """Measure the yardstick and rows that have not been measured yet, one after the other.

    Each is written when it is finished, so that an interrupted run goes on where it was.

    Args:
        settings: What to measure against, and where results go.
        names: Rows, keys of `ROWS`.
        seeds: Each row is made once with each.
        epsilons: Private rows are made once with each.
        extractors: Those of `standard_extractors` where None.
        docs: Folder of the page; rows that were published there by `render` are not made again.
        reuse: Measure images that are kept from an earlier run, of the same photographs and size,
            instead of making them again: for when a change is to the measure, not to the rows.

    Raises:
        RunError: There are no photographs, or a row is not known.
    """
    hospitals = load_hospitals(settings)
    if extractors is None:
        extractors = standard_extractors(settings.cache)
    judge = Judge(settings, hospitals, extractors)
    settings.out.mkdir(parents=True, exist_ok=True)
    if _read_json(settings.out / YARDSTICK_FILE).get("setting") != judge.setting:
        _say("measuring the hospitals against each other ...")
        write_json(settings.out / YARDSTICK_FILE, judge.yardstick())
    known = [*read_rows(docs / PICTURES, judge.setting), *read_rows(settings.out, judge.setting)]
    done = {_key(record) for record in known}
    labels_N = mixed_labels(settings.images)
    work_dir = settings.out / "work"
    work_dir.mkdir(exist_ok=True)
    context = Context(hospitals.train, settings.size_px, labels_N, work_dir)
    kept = settings.out / "images" / f"{hospitals.digest[:12]}-{settings.size_px}px"
    for name, epsilon, seed in wanted_rows(names, seeds, epsilons):
        if (name, epsilon, seed) in done:
            continue
        _say(f"{name}, epsilon {epsilon}, seed {seed} ...")
        row, seconds = _row(context, name, epsilon, seed, kept, reuse=reuse)
        save_png(
            _sheet(row, labels_N), settings.out / SHEETS / f"{row_label(name, epsilon, seed)}.png"
        )
        record = {"seconds_to_make": seconds, "code": code_hash(), **judge.record(row)}
        with (settings.out / ROWS_FILE).open("a", encoding="utf-8") as lines:
            # Also ends a line that an interrupted run has left open.
            lines.write("\n" + json.dumps(record) + "\n")
        kids = {name: round(1000 * m["kid"]["value"], 2) for name, m in record["metrics"].items()}
        _say(f"  KID x1000 {kids}")


def wanted_rows(
    names: Sequence[str], seeds: Sequence[int], epsilons: Sequence[float]
) -> list[tuple[str, float | None, int]]:
    """Name, epsilon and seed of every row that is asked for.

    Raises:
        RunError: A row is not known.
    """
    for name in names:
        if name not in ROWS:
            raise RunError(f"there is no row {name!r}", expected=f"some of {', '.join(ROWS)}")
    return [
        (name, epsilon, seed)
        for name in names
        for epsilon in (epsilons if ROWS[name].private else [None])
        for seed in seeds
    ]


def read_rows(out: Path, setting: str) -> list[Record]:
    """Finished rows that were measured by the same settings, photographs and features."""
    path = out / ROWS_FILE
    if not path.exists():
        return []
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            # Empty, or cut short when a run was ended.
            continue
        if record["setting"] == setting:
            records.append(record)
    return records


def row_label(name: str, epsilon: float | None, seed: int) -> str:
    """What a row's files are called."""
    return f"{name}{'' if epsilon is None else f'-epsilon-{epsilon:g}'}-seed-{seed}"


def run() -> list[Figure]:
    """Measure what needs no training, for `make bench`; nothing where there are no photographs.

    Returns:
        Rows of `simulations.benchmarks.child.row`.
    """
    folder = os.environ.get("FUNDUSGEN_REAL_DATA")
    if not folder:
        return []
    settings = Settings(Path(folder))
    measure(settings, ["phantoms"], [0], [])
    yardstick = _read_json(settings.out / YARDSTICK_FILE)
    (phantoms,) = (
        record
        for record in read_rows(settings.out, yardstick["setting"])
        if (record["row"], record["seed"]) == ("phantoms", 0)
    )
    name = yardstick["extractors"][0]["name"]
    pairs = [1000 * pair["metrics"][name]["kid"]["value"] for pair in yardstick["pairs"]]
    return [
        _kid_figure("training from test halves", yardstick["floor"]["metrics"], name),
        figure(f"nearest two hospitals, {name}", min(pairs), "KID x1000"),
        figure(f"median two hospitals, {name}", float(np.median(pairs)), "KID x1000"),
        figure(f"farthest two hospitals, {name}", max(pairs), "KID x1000"),
        _kid_figure("raw phantoms from test halves", phantoms["metrics"], name, max(pairs)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or render; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.quality")
    steps = parser.add_subparsers(dest="step", required=True)
    measuring = steps.add_parser("measure", help="measure the yardstick and rows")
    measuring.add_argument("--data", type=Path, required=True, help="folder of site folders")
    measuring.add_argument("--cache", type=Path, help="photographs' features; OUT/cache if absent")
    measuring.add_argument("--rows", nargs="*", choices=sorted(ROWS), default=list(ROWS))
    measuring.add_argument("--seeds", nargs="+", type=int, default=list(range(WANTED_SEEDS)))
    measuring.add_argument("--epsilons", nargs="+", type=float, default=list(WANTED_EPSILONS))
    measuring.add_argument("--images", type=int, default=Settings.images, help="of each row")
    measuring.add_argument("--reuse", action="store_true", help="measure kept images again")
    measuring.add_argument("--size", type=int, default=Settings.size_px, help="side in pixels")
    rendering = steps.add_parser("render", help="write the page and its pictures")
    halving = steps.add_parser("halves", help="write site folders of the halves of the hospitals")
    halving.add_argument("--data", type=Path, required=True, help="folder of site folders")
    halving.add_argument("--out", type=Path, default=OUT / "halves", help="where they go")
    for step in (measuring, rendering):
        step.add_argument("--docs", type=Path, default=DOCS, help="where quality.md goes")
        step.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    options = parser.parse_args(arguments)
    try:
        if options.step == "render":
            render(options.out, options.docs)
        elif options.step == "halves":
            for half, folders in write_halves(options.data, options.out).items():
                _say(f"{half}: {', '.join(map(str, folders))}")
        else:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
            cache = options.cache or options.out / "cache"
            settings = Settings(options.data, options.out, cache, options.images, options.size)
            measure(
                settings, options.rows, options.seeds, options.epsilons,
                reuse=options.reuse, docs=options.docs,
            )  # fmt: skip
    except FundusgenError as error:
        _say(str(error))
        return 1
    return 0


def render(out: Path, docs: Path) -> None:
    """Write the page of everything that was measured by the yardstick's settings.

    Raises:
        RunError: Nothing was measured.
    """
    yardstick = _read_json(out / YARDSTICK_FILE)
    if not yardstick:
        raise RunError(
            f"{out} holds no yardstick",
            expected=f"{YARDSTICK_FILE}, as the step `measure` writes it",
            remedy="Run `measure` first",
        )
    # The newest of each, so that rows of several machines make one page.
    rows = {
        _key(record): record
        for folder in (docs / PICTURES, out)
        for record in read_rows(folder, yardstick["setting"])
    }
    lines = (json.dumps(record) for record in rows.values())
    write_atomically(docs / PICTURES / ROWS_FILE, "\n".join(lines) + "\n")
    write_page(docs, yardstick, list(rows.values()), out / SHEETS, ROWS)


def _row(
    context: Context, name: str, epsilon: float | None, seed: int, kept: Path, *, reuse: bool
) -> tuple[Row, float]:
    """Make a row and keep its images, or find them; returns the seconds that making took, too."""
    count = len(context.labels_N)
    path = kept / f"{row_label(name, epsilon, seed)}-{count}.npz"
    if reuse and path.exists():
        with np.load(path, allow_pickle=False) as found:
            return Row(name, epsilon, seed, found["images_NSSC"]), float(found["seconds"])
    start = time.perf_counter()
    images_NSSC = ROWS[name].make(context, epsilon, seed)
    seconds = round(time.perf_counter() - start, 1)
    if images_NSSC.shape != (count, context.size_px, context.size_px, 3):
        raise RunError(
            f"the row {name} gave images of the shape {images_NSSC.shape}",
            expected=f"({count}, {context.size_px}, {context.size_px}, 3), one for each label",
        )
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, images_NSSC=images_NSSC, seconds=seconds)
    return Row(name, epsilon, seed, images_NSSC), seconds


def _kid_figure(what: str, metrics: Record, name: str, target: float | None = None) -> Figure:
    return figure(f"{what}, {name}", 1000 * metrics[name]["kid"]["value"], "KID x1000", target)


def _sheet(row: Row, labels_N: Sequence[str]) -> Any:
    """A picture of drawn images, a row for each condition."""
    places: dict[str, list[int]] = {}
    for image, label in enumerate(labels_N):
        places.setdefault(label, []).append(image)
    return contact_sheet(
        {label: row.images_NSSC[images[:_SHEET_COLUMNS]] for label, images in places.items()}
    )


def _key(record: Record) -> tuple[str, float | None, int]:
    return record["row"], record["epsilon"], record["seed"]


def _read_json(path: Path) -> Record:
    content: Record = json.loads(path.read_text()) if path.exists() else {}
    return content


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
