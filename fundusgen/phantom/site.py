"""A whole phantom hospital on disk: images and manifest, like any other site folder.

Last step of the simulator, and the only module of it that knows the manifest's format.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fundusgen.data.manifest import write_manifest
from fundusgen.errors import DataError
from fundusgen.phantom.anatomy import Eye
from fundusgen.phantom.camera import camera_style as look_up_style
from fundusgen.phantom.mix import DEFAULT_MIX
from fundusgen.phantom.patients import (
    EYES,
    PhantomPatient,
    check_mix,
    diagnosis,
    dme_risk,
    dr_grade,
    draw_patient,
)
from fundusgen.phantom.render import check_size, lesion_masks, render
from fundusgen.phantom.workers import ordered_map

MANIFEST_NAME = "manifest.csv"
# Photographs hardly shrink beyond zlib's low levels, and time is better spent on drawing.
_PNG_LEVEL = 1

Row = dict[str, str | int | None]


def write_site_folder(
    folder: Path,
    *,
    patients: int,
    seed: int,
    size_px: int = 256,
    camera_style: str = "amber",
    conditions_mix: Mapping[str, float] | None = None,
    both_eyes_rate: float = 0.9,
    masks: bool = False,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a phantom hospital: `images/*.png`, `manifest.csv` and, if asked for, `masks/*.png`.

    The folder takes its name when it is complete. PNG, because JPEG decoders differ in the last
    bit: the pixels of a seed are the same on any machine, and so is the manifest.

    Args:
        folder: Where to write; must not exist, or be empty.
        patients: Number of patients, at least 1.
        seed: The same seed gives the same hospital; patient k does not depend on how many follow.
        size_px: Side of the images.
        camera_style: A key of `fundusgen.phantom.camera.CAMERA_STYLES`.
        conditions_mix: Weight of each condition; `DEFAULT_MIX` where None.
        both_eyes_rate: Share of patients with both eyes photographed, 0 to 1.
        masks: Write where each kind of lesion is: `masks/<image>_<kind>.png` in grey, 255 where it
            covers the pixel fully; kinds that an eye does not have get no file.
        workers: Processes.
        on_progress: Called with the patients written and their total.

    Returns:
        The number of images written.

    Raises:
        DataError: The folder holds something, or an argument cannot be drawn from.
    """
    mix = dict(DEFAULT_MIX if conditions_mix is None else conditions_mix)
    _check(folder, patients, workers, both_eyes_rate)
    check_mix(mix)
    check_size(size_px)
    look_up_style(camera_style)
    draw_patient(seed, 0, mix, camera_style)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.unfinished-", dir=folder.parent))
    try:
        (unfinished / "images").mkdir()
        if masks:
            (unfinished / "masks").mkdir()
        write = partial(
            _write_patient, unfinished, seed, size_px, camera_style, mix, both_eyes_rate, masks
        )
        rows: list[Row] = []
        with ordered_map(workers) as apply:
            for done, written in enumerate(apply(write, range(patients)), start=1):
                rows.extend(written)
                if on_progress is not None:
                    on_progress(done, patients)
        write_manifest(unfinished / MANIFEST_NAME, rows)
        unfinished.chmod(0o755)
        # Renaming onto an empty folder replaces it; onto anything else it fails.
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return len(rows)


def _write_patient(
    folder: Path,
    seed: int,
    size_px: int,
    camera_style: str,
    mix: Mapping[str, float],
    both_eyes_rate: float,
    masks: bool,
    patient_number: int,
) -> list[Row]:
    patient = draw_patient(seed, patient_number, mix, camera_style)
    rows = []
    for eye in _photographed(seed, patient_number, both_eyes_rate):
        row = _row(patient, eye)
        image_SSC = render(patient.eyes[eye], size_px)
        image = folder / str(row["file"])
        Image.fromarray(image_SSC).save(image, compress_level=_PNG_LEVEL)
        if masks:
            for kind, mask_SS in lesion_masks(patient.eyes[eye], size_px).items():
                mask = folder / "masks" / f"{image.stem}_{kind}.png"
                Image.fromarray(mask_SS).save(mask, compress_level=_PNG_LEVEL)
        rows.append(row)
    return rows


def _photographed(seed: int, patient_number: int, both_eyes_rate: float) -> Iterator[Eye]:
    both, which = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, patient_number, 20]))
    ).random(2)
    for number, eye in enumerate(EYES):
        if both < both_eyes_rate or (which < 0.5) == (number == 0):
            yield eye


def _row(patient: PhantomPatient, eye: Eye) -> Row:
    phantom = patient.eyes[eye]
    name = f"phantom{patient.patient_number:05d}"
    return {
        "file": f"images/{name}_{eye}.png",
        "patient_id": name,
        "eye": eye,
        "dr_grade": dr_grade(phantom.condition),
        "dme_risk": dme_risk(phantom),
        "diagnosis": diagnosis(phantom.condition),
        "sex": patient.sex,
        "age": patient.age_years,
    }


def _check(folder: Path, patients: int, workers: int, both_eyes_rate: float) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} is there already and not empty",
            expected="a new or empty folder",
            remedy="Choose another folder, or delete this one first",
        )
    if patients < 1 or workers < 1:
        raise DataError(
            f"a phantom site of {patients} patients from {workers} workers was asked for",
            expected="at least 1 of each",
        )
    if not 0 <= both_eyes_rate <= 1:
        raise DataError(
            f"the share of patients with both eyes is {both_eyes_rate}", expected="0 to 1"
        )
