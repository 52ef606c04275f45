"""The site folders of a simulation: of phantoms, or of real photographs split by patient."""

import os
from collections.abc import Callable
from pathlib import Path

from fundusgen.data.conditions import condition_of
from fundusgen.data.manifest import ImageRow, ManifestSettings, read_manifest, write_manifest
from fundusgen.errors import RunError, StudyError
from fundusgen.phantom.site import write_site_folder
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.study import PartitionRule, PhantomSite, Study
from simulations.partition import main_condition, partition

# Phantoms are drawn somewhat larger than the model sees them, as a camera would.
_PHANTOM_SCALE = 1.5
_DECLARED_STEP = 10


def make_sites(study: Study, folder: Path, sources: Path | None, say: Callable[[str], None]) -> int:
    """Make the site folders that are not there yet.

    Args:
        study: The study, with its simulation settings.
        folder: Where the site folders go, one for each hospital.
        sources: Folder of folders with a manifest.csv each; None for phantoms.
        say: Told what is being done.

    Returns:
        The number of sites.

    Raises:
        StudyError: The study says nothing of sites, or names a folder that is not there.
        RunError: The sources cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sources is None:
        if not study.simulation.phantom_sites:
            raise StudyError(
                "The study names no simulation.phantom_sites, and no --sites was given",
                expected="one of the two",
                remedy="Give --sites DIR, a folder of folders with a manifest.csv each",
            )
        for number, site in enumerate(study.simulation.phantom_sites):
            _phantom_site(study, SiteFolder(folder / site.name), site, number, say)
        return len(study.simulation.phantom_sites)
    return sum(
        _real_sites(study, folder, source, say) for source in _source_folders(study, sources)
    )


def declared(patients: int) -> int:
    """The public number of a simulated site: rounded to ten, so that no one patient shows."""
    return max(_DECLARED_STEP, round(patients / _DECLARED_STEP) * _DECLARED_STEP)


def _phantom_site(
    study: Study, site: SiteFolder, wanted: PhantomSite, number: int, say: Callable[[str], None]
) -> None:
    if site.settings_file.is_file():
        return
    say(f"drawing {wanted.patients} phantom patients for {wanted.name}")
    write_site_folder(
        site.path / "data",
        patients=wanted.patients,
        seed=study.seed + number,
        size_px=round(study.image_size * _PHANTOM_SCALE),
        camera_style=wanted.camera,
        conditions_mix={str(name): weight for name, weight in wanted.mix.items()},
        workers=os.cpu_count() or 1,
    )
    _write_settings(study, site, Path("data/manifest.csv"), Path("data"), wanted.patients)


def _source_folders(study: Study, sources: Path) -> list[Path]:
    folders = sorted(path.parent for path in sources.resolve().glob("*/manifest.csv"))
    if not folders:
        raise RunError(
            f"{sources} holds no site",
            expected="folders with a manifest.csv each",
            remedy="Check --sites; `fundusgen phantom` writes an example of such a folder",
        )
    names = {path.name for path in folders}
    simulation = study.simulation
    missing = sorted({*simulation.partition, *simulation.one_image_per_patient} - names)
    if missing:
        raise StudyError(
            f"The study's simulation names {', '.join(missing)}, which {sources} does not hold",
            expected=f"some of {', '.join(sorted(names))}",
        )
    return folders


def _real_sites(study: Study, folder: Path, source: Path, say: Callable[[str], None]) -> int:
    """Make the hospitals of one source folder; returns how many."""
    settings = ManifestSettings(
        manifest=source / "manifest.csv",
        root=source,
        columns={},
        one_image_per_patient=source.name in study.simulation.one_image_per_patient,
    )
    by_patient: dict[str, list[ImageRow]] = {}
    for row in readable_rows(settings):
        by_patient.setdefault(row.patient_id, []).append(row)
    rule = study.simulation.partition.get(source.name, PartitionRule(into=1))
    conditions = {
        patient: main_condition([condition_of(row) for row in rows])
        for patient, rows in by_patient.items()
    }
    parts = partition(conditions, rule, study.seed)
    name = site_name(source)
    for number, patients in enumerate(parts, start=1):
        site = SiteFolder(folder / (name if len(parts) == 1 else f"{name}-{number}"))
        if site.settings_file.is_file():
            continue
        say(f"{site.path.name}: {len(patients)} patients of {source.name}")
        site.path.mkdir(parents=True, exist_ok=True)
        rows = [manifest_row(row) for patient in patients for row in by_patient[patient]]
        write_manifest(site.path / "manifest.csv", rows)
        _write_settings(study, site, Path("manifest.csv"), source, len(patients))
    return len(parts)


def site_name(source: Path) -> str:
    """The name of a hospital whose photographs are in a folder."""
    return source.name.lower().replace(" ", "-")


def readable_rows(settings: ManifestSettings) -> tuple[ImageRow, ...]:
    """The rows of a hospital's manifest that can be used.

    Raises:
        RunError: There is none.
    """
    reading = read_manifest(settings)
    if not reading.rows:
        raise RunError(
            f"No row of {settings.manifest} can be used: {reading.problems[0]}",
            remedy="Sites without patient ids must be listed in simulation.one_image_per_patient "
            "if each image is of another patient",
        )
    return reading.rows


def manifest_row(row: ImageRow) -> dict[str, str | int | None]:
    """The cells of a row, for another manifest with the same root."""
    return {
        "file": row.file, "patient_id": row.patient_id, "eye": row.eye, "dr_grade": row.dr_grade,
        "dme_risk": row.dme_risk, "diagnosis": row.diagnosis, "sex": row.sex, "age": row.age,
    }  # fmt: skip


def _write_settings(
    study: Study, site: SiteFolder, manifest: Path, root: Path, patients: int
) -> None:
    site.write(
        SiteSettings(
            name=site.path.name,
            data=SiteData(manifest=manifest, root=root, declared_patients=declared(patients)),
            threads=1,
        ),
        Policy(
            max_epsilon=study.simulation.max_epsilon or study.privacy.target_epsilon,
            delta=study.privacy.target_delta,
            noise=study.privacy.noise,
            studies=(study.study_hash,),
            # Nobody reviews the code of a simulation: it is the one at hand.
            code="any",
            models=(study.model.kind,),
            max_rounds_per_study=study.total_rounds,
        ),
    )
