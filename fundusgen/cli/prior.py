"""`fundusgen prior`: pretrain a study's model on phantoms, before any patient."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fundusgen.cli.progress import progress
from fundusgen.errors import RunError
from fundusgen.models.generator import Generator
from fundusgen.report.pictures import draw_sheet, save_png
from fundusgen.study import Study, load_study
from fundusgen.training.prior import (
    Prior,
    PriorProgress,
    cached_prior,
    default_cache_dir,
    pretrained,
    require_prior,
)
from fundusgen.training.prior_file import save_prior

_SHEET_COLUMNS = 8
_STAGES = {"phantoms": "drawing phantoms", "training": "training on them"}


def prior(
    study: Annotated[Path, typer.Argument(help="The study file; needs a section `prior:`.")],
    out: Annotated[Path, typer.Option(help="File to write the weights to (safetensors).")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw phantoms.")] = 1,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder where priors are kept.", show_default="~/.cache/fundusgen/priors"
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG file with a row of drawn images for each condition.")
    ] = None,
) -> None:
    """Pretrain a study's model on phantoms: no patient is behind it, so epsilon is 0.

    Takes minutes. What it made is kept, and a study with the same model and prior gets it at once.
    """
    loaded = load_study(study)
    require_prior(loaded)
    cache = cache or default_cache_dir()
    kept = cached_prior(loaded, cache)
    try:
        # What cannot be written is found out before the minutes, not after them.
        cache.mkdir(parents=True, exist_ok=True)
        _require_place(out, sheet)
        made = kept or _made(loaded, cache, workers)
        save_prior(out, loaded, made)
        if sheet is not None:
            save_png(draw_sheet(Generator(loaded, made.weights), _SHEET_COLUMNS, 0), sheet)
    except OSError as error:
        raise RunError(
            f"{error.filename or out} cannot be written: {error.strerror}",
            expected="folders with room that this user may write",
            remedy="Free space, correct the permissions, or choose another --out, --sheet, --cache",
        ) from error
    typer.echo(_said(made, reused=kept is not None))
    typer.echo(f"weights: {out}" + (f", pictures: {sheet}" if sheet else ""))


def _require_place(*files: Path | None) -> None:
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise RunError(f"{file} is a folder", expected="the name of a file to write")
        file.parent.mkdir(parents=True, exist_ok=True)


def _made(study: Study, cache: Path, workers: int) -> Prior:
    """Draw and train, showing the progress of each and the newest held-out distance."""
    with progress(Console(highlight=False)) as show:

        def tell(reached: PriorProgress) -> None:
            distance = reached.held_out_distance
            remark = "" if distance is None else f"held-out distance {distance:.4f}"
            show(_STAGES[reached.stage], reached.done, reached.total, remark)

        return pretrained(study, cache, workers=workers, on_progress=tell)


def _said(prior: Prior, *, reused: bool) -> str:
    """Say what was learned, or that it was there already."""
    facts = prior.facts
    drawn = facts["phantoms"] + facts["held_out_phantoms"]
    learned = (
        f"held-out distance {facts['held_out_distance']:.4f} at step {facts['best_step']} of "
        f"{facts['steps']}"
    )
    if reused:
        return f"prior {prior.digest[:12]} was there already: {learned}; epsilon 0"
    return (
        f"prior {prior.digest[:12]}: {drawn} phantoms in {facts['phantom_seconds']:.0f} s, "
        f"{learned} in {facts['training_seconds']:.0f} s; epsilon 0"
    )
