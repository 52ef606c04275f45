"""`fundusgen phantom`: write a phantom hospital, or a sheet of what phantoms look like."""

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from fundusgen.cli.progress import progress
from fundusgen.errors import DataError
from fundusgen.phantom.camera import CAMERA_STYLES
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.sheet import phantom_sheet
from fundusgen.phantom.site import MANIFEST_NAME, write_site_folder

phantom_app = typer.Typer(help="Draw phantoms: fundus photographs without a patient.")


@phantom_app.callback(invoke_without_command=True)
def phantom(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Site folder to write; new or empty.")] = None,
    patients: Annotated[int, typer.Option(min=1, help="Number of patients.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same site.")] = 0,
    camera: Annotated[
        str, typer.Option(help="Camera style: " + ", ".join(CAMERA_STYLES) + ".")
    ] = "amber",
    size_px: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 256,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="Weight of a condition, such as dr2=0.3; may be repeated. "
            + "Known: "
            + ", ".join(PHANTOM_CONDITIONS)
            + "."
        ),
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="Write masks/IMAGE_KIND.png: where each lesion is.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Write a site folder of phantoms: images of both eyes of most patients, and manifest.csv."""
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise DataError(
            "no folder was given to write the phantoms to",
            remedy="Name one: fundusgen phantom --out DIR --patients N --seed S",
        )
    mix = _parse_mix(condition) if condition else None
    with progress(Console(highlight=False)) as show:
        count = write_site_folder(
            out,
            patients=patients,
            seed=seed,
            size_px=size_px,
            camera_style=camera,
            conditions_mix=mix,
            masks=masks,
            workers=workers,
            on_progress=lambda done, total: show("patients", done, total, ""),
        )
    typer.echo(
        f"{count} phantom images of {patients} patients ({camera}, {size_px} px) in {out}, "
        f"listed in {out / MANIFEST_NAME}" + (f", lesions in {out / 'masks'}" if masks else "")
    )


@phantom_app.command()
def sheet(
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    size_px: Annotated[int, typer.Option(help="Side of one picture in pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same sheet.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Pictures of each.")] = 1,
) -> None:
    """Write a picture with a row for each condition and a column for each camera."""
    if not out.parent.is_dir():
        raise DataError(
            f"there is no folder {out.parent} to write {out.name} to",
            remedy="Make it first, or choose another --out",
        )
    picture = phantom_sheet(size_px, seed, repeats=repeats)
    Image.fromarray(picture).save(out, format="PNG")
    typer.echo(f"{out}: rows {', '.join(PHANTOM_CONDITIONS)}; columns {', '.join(CAMERA_STYLES)}")


def _parse_mix(weights: list[str]) -> dict[str, float]:
    """Read name=weight; the same name twice is a slip and refused."""
    mix: dict[str, float] = {}
    for text in weights:
        name, _, value = text.partition("=")
        try:
            weight = float(value) if value else 1.0
        except ValueError:
            weight = float("nan")
        if not 0 <= weight < float("inf") or name in mix:
            raise DataError(
                f"--condition {text!r} is not a condition with its weight",
                expected="a name once, an equals sign and a weight of 0 or more, such as dr2=0.3",
            )
        mix[name] = weight
    return mix
