"""What `fundusgen evaluate` does with what it was asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from fundusgen.cli.progress import progress
from fundusgen.errors import RunError
from fundusgen.evaluation.colour import ColourFeatures
from fundusgen.evaluation.encoders import encoder_from
from fundusgen.evaluation.evaluation import Evaluated, evaluated
from fundusgen.evaluation.features import CachedFeatures, FeatureExtractor
from fundusgen.evaluation.imagenet import ImageNetFeatures
from fundusgen.evaluation.inception import InceptionFeatures
from fundusgen.evaluation.likeness import check_photographs
from fundusgen.evaluation.material import EvaluationSettings
from fundusgen.evaluation.phantom_classifier import PhantomFeatures
from fundusgen.evaluation.questions import Question
from fundusgen.evaluation.real_images import (
    RealImages,
    check_disjoint,
    check_enough,
    load_real,
    without_shared,
)
from fundusgen.evaluation.subject import subject_of
from fundusgen.report.closest_pairs import write_closest_pairs
from fundusgen.report.evaluation_page import PAGE, write_evaluation
from fundusgen.report.evaluation_values import Values, sentences
from fundusgen.storage import write_atomically
from fundusgen.training.prior import default_cache_dir

# What shows photographs, or was computed of single ones.
SITE_ONLY = "site-only"
_NOTICE = (
    "This folder holds photographs of patients, and features of single photographs.\n"
    "It stays at the site. Delete it when the evaluation is done.\n"
)


@dataclass(frozen=True)
class Asked:
    """Arguments and options of the command, as `fundusgen.cli.evaluate` documents them."""

    run: Path
    real: tuple[Path, ...]
    out: Path
    train: tuple[Path, ...]
    phantoms: bool
    questions: tuple[Question, ...]
    images: int
    seeds: int
    bootstrap: int
    seed: int
    encoders: tuple[Path, ...]
    inception: bool
    separate_ids: bool
    leave_out_shared: bool
    one_image_per_patient: bool
    size_px: int
    workers: int


def write_evaluation_of(asked: Asked) -> None:
    """Evaluate, write the pages and print what was found.

    Raises:
        FundusgenError: Something that was given cannot be used, or the folder cannot be written.
    """
    # One thread: sums of several round otherwise, so that a classifier that was trained on another
    # machine would say something else; and they wait for each other where it is busy. What can be
    # shared is shared among processes.
    torch.set_num_threads(1)
    threadpool_limits(limits=1)
    site_only = asked.out / SITE_ONLY
    try:
        site_only.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(site_only / "README.txt", _NOTICE)
    except OSError as error:
        raise RunError(
            f"{asked.out} cannot be written: {error.strerror or error}",
            expected="a folder for the evaluation",
            remedy="Choose another --out",
        ) from error
    cache = site_only / "cache"
    with progress(Console(stderr=True, highlight=False)) as show:

        def shown(what: str, done: int, total: int) -> None:
            show(what, done, total, "")

        subject = subject_of(
            asked.run, phantoms=asked.phantoms, size_px=asked.size_px, cache=cache / "drawn",
            workers=asked.workers,
            on_progress=lambda done, total: shown("reading drawn images", done, total),
        )  # fmt: skip

        def read(folders: Sequence[Path], what: str) -> RealImages:
            return load_real(
                folders, subject.size_px, cache,
                label=what.split()[0],
                one_image_per_patient=asked.one_image_per_patient, workers=asked.workers,
                on_progress=lambda done, total: shown(f"reading {what}", done, total),
            )  # fmt: skip

        tested = read(asked.real, "test photographs")
        check_enough(tested.images.of_conditions(subject.conditions), subject.conditions)
        extractors = _extractors(cache, asked.encoders, inception=asked.inception)
        check_photographs(tested.images, extractors[0], _named(asked.real))
        trained = read(asked.train, "training photographs") if asked.train else None
        if trained is not None:
            check_photographs(trained.images, extractors[0], _named(asked.train))
            if asked.leave_out_shared:
                tested = without_shared(tested, trained)
                check_enough(tested.images.of_conditions(subject.conditions), subject.conditions)
            check_disjoint(tested, trained, ids_are_separate=asked.separate_ids)
        made = evaluated(
            subject, tested, trained,
            extractors,
            EvaluationSettings(
                images=asked.images, seed=asked.seed,
                training_seeds=tuple(range(asked.seed, asked.seed + asked.seeds)),
                replicates=asked.bootstrap, workers=asked.workers,
            ),
            asked.questions, shown,
        )  # fmt: skip
    values = _write(made, asked.out)
    console = Console(highlight=False)
    console.print(subject.identity.study_id or "drawn images", style="bold")
    for sentence in sentences(values):
        console.print(f"- {sentence}")
    console.print(f"\n{asked.out / PAGE}")


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)


def _extractors(
    cache: Path, encoders: Sequence[Path], *, inception: bool
) -> list[FeatureExtractor]:
    """What to measure by; the first leads."""
    found: list[FeatureExtractor] = [
        ImageNetFeatures(), PhantomFeatures(default_cache_dir()), ColourFeatures(),
    ]  # fmt: skip
    found += [
        encoder_from(path, architecture="vit" if path.suffix == ".safetensors" else None)
        for path in encoders
    ]
    if inception:
        found.append(InceptionFeatures())
    names = [extractor.name for extractor in found]
    if len(set(names)) < len(names):
        raise RunError(
            f"two networks to measure by have one name, among {', '.join(names)}",
            expected="names that tell them apart",
            remedy="Rename the files of --encoder",
        )
    return [CachedFeatures(extractor, cache / "features") for extractor in found]


def _write(made: Evaluated, out: Path) -> Values:
    try:
        values = write_evaluation(out, made)
        if made.closest:
            write_closest_pairs(out / SITE_ONLY / "closest-pairs.html", made)
    except OSError as error:
        raise RunError(
            f"{out} cannot be written: {error.strerror or error}",
            expected="a folder with room for the evaluation",
            remedy="Free space, or choose another --out",
        ) from error
    return values
