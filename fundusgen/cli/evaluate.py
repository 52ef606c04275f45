"""`fundusgen evaluate`: how real, useful and discreet a generator is, on real photographs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fundusgen.errors import ModelError
from fundusgen.evaluation.questions import Question


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(help="A finished run, a generator's folder, or a folder of drawn images."),
    ],
    real: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            help="Test photographs with manifest.csv, or a site folder; may be repeated.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where evaluation.html and evaluation.json go.")
    ],
    train: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Photographs that were trained on, of other patients; may be repeated. Needed to "
            "measure leakage, and whether generated images help beside real ones.",
        ),
    ] = None,
    phantoms: Annotated[
        bool, typer.Option("--phantoms", help="Judge the phantoms that patients voted for.")
    ] = False,
    only: Annotated[
        list[Question] | None, typer.Option(help="Answer this question only; may be repeated.")
    ] = None,
    images: Annotated[int, typer.Option(min=100, help="Generated images.")] = 5000,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each classifier.")] = 3,
    bootstrap: Annotated[int, typer.Option(min=50, help="Replicates of every interval.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same figures.")] = 0,
    encoder: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A further network to measure by: TorchScript, or a ViT such as RETFound as "
            "safetensors; may be repeated. TorchScript runs code: only from who is trusted.",
        ),
    ] = None,
    inception: Annotated[
        bool, typer.Option("--inception", help="Measure by InceptionV3 too, if it is installed.")
    ] = False,
    separate_ids: Annotated[
        bool,
        typer.Option(
            "--separate-ids", help="Equal patient ids of test and training folders are two people."
        ),
    ] = False,
    leave_out_shared: Annotated[
        bool,
        typer.Option(
            "--leave-out-shared",
            help="Leave test patients out whose photographs are in the training folder, too.",
        ),
    ] = False,
    one_image_per_patient: Annotated[
        bool,
        typer.Option(
            "--one-image-per-patient",
            help="No patient has two images, so that patient ids may be missing.",
        ),
    ] = False,
    size_px: Annotated[
        int, typer.Option(min=32, max=512, help="Side, for a folder of drawn images only.")
    ] = 64,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes.", show_default="all cores")
    ] = os.cpu_count() or 1,
) -> None:
    """Judge a generator on real photographs: is it real, is it useful, does it leak?

    Writes evaluation.html, to read, and evaluation.json, for programs and for `fundusgen release`.
    Pages with photographs go to the folder site-only, which does not leave the site. The figures
    are computed of real patients without noise: that they may be passed on is for whoever owns the
    photographs to say.
    """
    try:
        # Only who evaluates needs these packages, and no other command waits for them.
        from fundusgen.cli.evaluation import Asked, write_evaluation_of
    except ImportError as error:
        raise ModelError(
            f"the package {error.name} is not installed",
            expected="what evaluation needs besides training",
            remedy="Install `fundusgen[evaluation]`",
        ) from error
    write_evaluation_of(
        Asked(
            run=run,
            real=tuple(real),
            out=out,
            train=tuple(train or ()),
            phantoms=phantoms,
            questions=tuple(only or Question),
            images=images,
            seeds=seeds,
            bootstrap=bootstrap,
            seed=seed,
            encoders=tuple(encoder or ()),
            inception=inception,
            separate_ids=separate_ids,
            leave_out_shared=leave_out_shared,
            one_image_per_patient=one_image_per_patient,
            size_px=size_px,
            workers=workers,
        )
    )
