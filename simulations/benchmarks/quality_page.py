"""The page of the quality benchmark: rows, yardstick, targets and pictures of drawn images.

Nothing is measured here; figures come from `simulations.benchmarks.quality`, and the pictures it
shows are of drawn images only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fundusgen.evaluation.fidelity import interval
from fundusgen.evaluation.frechet import MOST_AXES
from fundusgen.storage import replacing, write_atomically
from simulations.benchmarks.quality_context import RowKind
from simulations.benchmarks.quality_rows import (
    FROM_SCRATCH,
    GAN_IN_ONE_PLACE,
    GAN_ORDINARY,
    GAN_PRIOR,
    GAN_WITHOUT_NOISE,
    PRETRAINED_GANS,
    RAW_PHANTOMS,
)

PAGE, PICTURES = "quality.md", "quality"
# Written by hand: why targets are missed, and what was tried. Beside the published rows.
NOTES = "notes.md"
# Kernel distances are small; this is how papers print them.
_KID_SCALE = 1000
_JPEG_QUALITY = 88
_SEEDS_SEED = 7

# A row is whole with so many seeds, and a private one at each of these.
WANTED_SEEDS, WANTED_EPSILONS = 3, (1.0, 3.0, 8.0)

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Figure:
    """A distance averaged over seeds, and replicates of it."""

    value: float
    replicates_B: NDArray[np.float64]

    def text(self, digits: int = 1) -> str:
        """The distance with its interval."""
        low, high = interval(self.value, self.replicates_B)
        return f"{self.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    def verdict(self, target: float) -> str:
        """Whether it is under a target, by how much, and whether its interval is so too."""
        low, high = interval(self.value, self.replicates_B)
        word = "met" if self.value < target else "**missed**"
        doubt = ", the target is in the interval" if low < target < high else ""
        return f"{word} by {abs(target - self.value):.1f}{doubt}"


@dataclass(frozen=True, eq=False)
class Group:
    """All seeds of a row at an epsilon."""

    name: str
    epsilon: float | None
    records: Sequence[Record]

    @property
    def label(self) -> str:
        """Name and epsilon as a file name."""
        epsilon = "" if self.epsilon is None else f"-epsilon-{self.epsilon:g}"
        return f"{self.name}{epsilon}"

    def figure(self, extractor: str, distance: str) -> Figure:
        """A distance over the seeds; see `averaged`."""
        return averaged([record["metrics"][extractor][distance] for record in self.records])


def write_page(
    docs: Path,
    yardstick: Record,
    records: Sequence[Record],
    sheets: Path,
    kinds: Mapping[str, RowKind],
) -> None:
    """Write the page and copy a picture for each row.

    Args:
        docs: Folder of the page.
        yardstick: What `Judge.yardstick` gave.
        records: Rows of the same setting.
        sheets: Folder of the rows' pictures.
        kinds: Titles of the rows.
    """
    groups = grouped(records, list(kinds))
    titles = {name: kind.title or name.replace("_", " ") for name, kind in kinds.items()}
    pictures = _pictures(groups, sheets, docs / PICTURES)
    lines = [
        *_introduction(yardstick, records),
        *_table(yardstick, groups, titles),
        *_yardstick(yardstick),
        *_targets(yardstick, groups, titles),
        *_missing(groups, kinds),
        *_notes(docs / PICTURES / NOTES),
        *_gallery(groups, titles, pictures),
        *_method(yardstick),
    ]
    write_atomically(docs / PAGE, "\n".join(lines) + "\n")


def grouped(records: Sequence[Record], order: Sequence[str]) -> list[Group]:
    """Put the seeds of each row together; rows in the given order, epsilons rising."""
    seeds: dict[tuple[str, float | None], list[Record]] = {}
    for record in records:
        seeds.setdefault((record["row"], record["epsilon"]), []).append(record)
    place = {name: number for number, name in enumerate(order)}
    keys = sorted(seeds, key=lambda key: (place.get(key[0], len(place)), key[0], key[1] or 0.0))
    return [
        Group(name, epsilon, sorted(seeds[name, epsilon], key=lambda record: record["seed"]))
        for name, epsilon in keys
    ]


def averaged(distances: Sequence[Record]) -> Figure:
    """Average a distance over seeds, with replicates that also resample the seeds.

    Replicate number b of every seed has the same patients on the real side, so the average of
    replicates varies with them as the average of the distances would.
    """
    replicates_KB = np.array([distance["replicates"] for distance in distances])
    seeds, replicates = replicates_KB.shape
    chosen_KB = np.random.default_rng(_SEEDS_SEED).integers(seeds, size=(seeds, replicates))
    value = float(np.mean([distance["value"] for distance in distances]))
    return Figure(value, np.take_along_axis(replicates_KB, chosen_KB, axis=0).mean(axis=0))


def pair_kids(yardstick: Record, extractor: str) -> NDArray[np.float64]:
    """KID x1000 of every two hospitals, in the yardstick's order."""
    return np.array([_kid(pair["metrics"], extractor).value for pair in yardstick["pairs"]])


def _introduction(yardstick: Record, records: Sequence[Record]) -> list[str]:
    test, size_px = yardstick["test"], yardstick["size_px"]
    images = max((record["images"] for record in records), default=0)
    return [
        "# How near the pictures come to photographs",
        "",
        "```sh",
        "python -m simulations.benchmarks.quality measure --data DIR",
        "python -m simulations.benchmarks.quality render",
        "```",
        f"Distance of {images:,} drawn images at {size_px} px from {test['images']:,} photographs "
        f"of {test['patients']:,} patients, on whom no row was trained. KID x1000, smaller is "
        "nearer, with 95 % intervals; mean over seeds.",
        "",
    ]


def _table(yardstick: Record, groups: Sequence[Group], titles: Mapping[str, str]) -> list[str]:
    names = _extractors(yardstick)
    heads = [f"KID, {name}" for name in names] + [f"Frechet, {name}" for name in _frechet(names)]
    heads.append(f"KID, {names[0]}, of each seed")
    floor = Group("floor", None, [yardstick["floor"]])
    lines = [
        f"| images | epsilon | seeds | {' | '.join(heads)} |",
        f"|---|---:|---:|{'---:|' * len(heads)}",
        f"| other photographs of the same hospitals (the floor) | | | {_cells(floor, names)} |",
    ]
    for group in groups:
        epsilon = "" if group.epsilon is None else f"{group.epsilon:g}"
        title = titles.get(group.name, group.name)
        lines.append(f"| {title} | {epsilon} | {len(group.records)} | {_cells(group, names)} |")
    return [*lines, ""]


def _cells(group: Group, names: Sequence[str]) -> str:
    kids = [_scaled(group.figure(name, "kid")).text() for name in names]
    frechets = [group.figure(name, "frechet").text(2) for name in _frechet(names)]
    seeds = [record["metrics"][names[0]]["kid"]["value"] for record in group.records]
    said = ", ".join(f"{_KID_SCALE * value:.0f}" for value in seeds) if len(seeds) > 1 else ""
    return " | ".join([*kids, *frechets, said])


def _frechet(names: Sequence[str]) -> Sequence[str]:
    """The two that see shapes; that of colours says what their KID says."""
    return names[:2]


def _notes(path: Path) -> list[str]:
    return [path.read_text(encoding="utf-8").rstrip(), ""] if path.is_file() else []


def _yardstick(yardstick: Record) -> list[str]:
    names = _extractors(yardstick)
    lines = [
        "## Yardstick: hospitals from each other",
        "KID x1000 of every two hospitals, by the same features at the same size.",
        "",
        f"| hospitals | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for word, statistic in (("nearest", np.min), ("median", np.median), ("farthest", np.max)):
        cells = [f"**{statistic(pair_kids(yardstick, name)):.1f}**" for name in names]
        lines.append(f"| **{word}** | {' | '.join(cells)} |")
    for pair in yardstick["pairs"]:
        cells = [_kid(pair["metrics"], name).text() for name in names]
        lines.append(f"| {' and '.join(pair['between'])} | {' | '.join(cells)} |")
    return [*lines, ""]


def _targets(yardstick: Record, groups: Sequence[Group], titles: Mapping[str, str]) -> list[str]:
    names = _extractors(yardstick)
    lines = [
        "## Targets",
        f"| target | row | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for target, judged, bounds in _judged(yardstick, groups):
        if not judged or not bounds:
            lines.append(f"| {target} | not measured |{' |' * len(names)}")
            continue
        for group in judged:
            cells = [_scaled(group.figure(name, "kid")).verdict(bounds[name]) for name in names]
            title = titles.get(group.name, group.name)
            lines.append(f"| {target} | {title} | {' | '.join(cells)} |")
    median_of = [float(np.median(pair_kids(yardstick, name))) for name in names]
    raw = [group for group in groups if group.name == RAW_PHANTOMS]
    if raw and all(
        _scaled(raw[0].figure(name, "kid")).value < bound
        for name, bound in zip(names, median_of, strict=True)
    ):
        lines += [
            "",
            "Raw phantoms, which have seen nobody, are nearer than the median two hospitals by all "
            "of these: that target says little here.",
        ]
    return [*lines, ""]


def _judged(
    yardstick: Record, groups: Sequence[Group]
) -> list[tuple[str, list[Group], Mapping[str, float]]]:
    """Each target with the rows it is for and its bound by each extractor."""
    names = _extractors(yardstick)
    nearest, median, farthest = (
        {name: float(statistic(pair_kids(yardstick, name))) for name in names}
        for statistic in (np.min, np.median, np.max)
    )
    open_model, own_prior, central, ordinary = (
        {
            name: scale * _scaled(group.figure(name, "kid")).value
            for group in groups
            if group.name == row
            for name in names
        }
        for row, scale in (
            (FROM_SCRATCH, 1.0),
            (GAN_PRIOR, 1.0),
            (GAN_IN_ONE_PLACE, 1.5),
            (GAN_ORDINARY, 1.5),
        )
    )
    at_8 = [group for group in groups if group.epsilon == 8 and not group.name.startswith("gan_")]
    gan_at_8 = [group for group in groups if group.epsilon == 8 and group.name in PRETRAINED_GANS]
    free = [group for group in groups if group.name == GAN_WITHOUT_NOISE]
    at_1 = [group for group in groups if group.epsilon == 1 and not group.name.startswith("gan_")]
    raw = [group for group in groups if group.name == RAW_PHANTOMS]
    return [
        ("epsilon 8: nearer than the nearest two hospitals", at_8, nearest),
        ("epsilon 8: nearer than the same model from scratch without privacy", at_8, open_model),
        ("epsilon 1: nearer than the median two hospitals", at_1, median),
        ("raw phantoms: nearer than the farthest two hospitals", raw, farthest),
        ("GAN at epsilon 8: nearer than its own prior", gan_at_8, own_prior),
        ("GAN at epsilon 8: nearer than the median two hospitals", gan_at_8, median),
        ("GAN without noise: at most 1.5 times the distance of one place", free, central),
        (
            "GAN without noise: at most 1.5 times the distance of ordinary training",
            free,
            ordinary,
        ),
    ]


def _missing(groups: Sequence[Group], kinds: Mapping[str, RowKind]) -> list[str]:
    """Say which rows have fewer seeds than are wanted."""
    found = {(group.name, group.epsilon): len(group.records) for group in groups}
    said = []
    for name, kind in kinds.items():
        lacking: dict[int, list[str]] = {}
        for epsilon in WANTED_EPSILONS if kind.private else (None,):
            lacks = WANTED_SEEDS - found.get((name, epsilon), 0)
            if lacks > 0:
                lacking.setdefault(lacks, []).append("" if epsilon is None else f"{epsilon:g}")
        for lacks, epsilons in lacking.items():
            at = f" at epsilon {', '.join(epsilons)}" if kind.private else ""
            of = "not at all" if lacks == WANTED_SEEDS else f"{lacks} of {WANTED_SEEDS} seeds"
            said.append(f"- {kind.title or name.replace('_', ' ')}{at}: {of}")
    return ["## Not measured", *said, ""] if said else []


def _pictures(groups: Sequence[Group], sheets: Path, folder: Path) -> dict[str, str]:
    """Copy the first seed's picture of each row; returns the links."""
    links = {}
    for group in groups:
        source = sheets / f"{group.label}-seed-{group.records[0]['seed']}.png"
        picture = folder / f"{group.label}.jpg"
        if source.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # Half the room of a PNG; a palette would put steps into smooth shading.
            with Image.open(source) as sheet, replacing(picture) as temporary:
                sheet.save(temporary, format="JPEG", quality=_JPEG_QUALITY)
        # That of another machine's row stays.
        if picture.exists():
            links[group.label] = f"{folder.name}/{picture.name}"
    return links


def _gallery(
    groups: Sequence[Group], titles: Mapping[str, str], links: Mapping[str, str]
) -> list[str]:
    lines = ["## Pictures", "Drawn images; no photograph is shown.", ""]
    for group in groups:
        if group.label in links:
            epsilon = "" if group.epsilon is None else f", epsilon {group.epsilon:g}"
            title = f"{titles.get(group.name, group.name)}{epsilon}"
            lines += [f"### {title}", f"![{title}]({links[group.label]})", ""]
    return lines


def _method(yardstick: Record) -> list[str]:
    hospitals = ", ".join(
        f"{name} ({counts['images']:,} of {counts['patients']:,} patients)"
        for name, counts in yardstick["hospitals"].items()
    )
    features = [
        f"- `{e['name']}`: {e['version']}, {e['dimensions']} features"
        + (f", weights `{e['digest'][:12]}`" if e["digest"] else "")
        for e in yardstick["extractors"]
    ]
    return [
        "## How it was measured",
        f"Photographs: {hospitals}. Hospitals of a hundred patients or more are split in halves by "
        "patient; the test halves together are the reference, so the largest weighs most.",
        "",
        *features,
        "",
        "All images are framed alike and shown as right eyes. Drawn images have the conditions of "
        "the phantoms' public mix, not those of the hospitals. KID is the unbiased estimate over "
        "all pairs of images of different patients (Binkowski et al. 2018). Intervals are of a "
        "bootstrap that draws patients on the real side, images on the drawn one, and seeds again. "
        "Rows that begin with a prior begin with the same one, as studies do that do not say "
        "otherwise: their seeds vary all that comes after it, and rows of priors the prior. "
        f"The Frechet distance (Heusel et al. 2017) is along the reference's {MOST_AXES} widest "
        "axes, and biased upwards by few images: compare it with the floor's.",
        "",
        "No row is trained on the test halves, but who made the simulator is not blind to them: "
        "its grain, sharpness and tone, and that patients say how their photographs look, were "
        "settled with KID to these photographs in view, so rows that are made from phantoms are "
        "optimistic.",
    ]


def _extractors(yardstick: Record) -> list[str]:
    return [extractor["name"] for extractor in yardstick["extractors"]]


def _kid(metrics: Record, extractor: str) -> Figure:
    return _scaled(averaged([metrics[extractor]["kid"]]))


def _scaled(figure: Figure) -> Figure:
    return Figure(_KID_SCALE * figure.value, _KID_SCALE * figure.replicates_B)
