"""The halves of the quality benchmark as site folders, for `fundusgen evaluate`.

What a row has made is then judged as any user would judge it, on the very patients that the row
has not seen. Photographs stay where they are: a folder holds a manifest that names them.
"""

from collections.abc import Sequence
from pathlib import Path

from fundusgen.data.manifest import ImageRow, write_manifest
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from simulations.benchmarks.quality_hospitals import halves_of, manifest_of, source_folders
from simulations.sites import declared, manifest_row, readable_rows, site_name

HALVES = ("train", "test")


def write_halves(data: Path, out: Path) -> dict[str, list[Path]]:
    """Write a site folder for each half of every hospital that the benchmark splits.

    Args:
        data: Folder of site folders.
        out: Gets `train/NAME` and `test/NAME`; folders that are there are written anew.

    Returns:
        The folders of each half.

    Raises:
        RunError: There is no hospital, or one has no usable row.
    """
    written: dict[str, list[Path]] = {half: [] for half in HALVES}
    for source in source_folders(data.resolve()):
        rows = readable_rows(manifest_of(source))
        halves = halves_of(source.name, [row.patient_id for row in rows])
        for half, places_N in zip(HALVES, halves or (), strict=halves is not None):
            folder = out.resolve() / half / site_name(source)
            _write(folder, source, [rows[place] for place in places_N])
            written[half].append(folder)
    return written


def _write(folder: Path, root: Path, rows: Sequence[ImageRow]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "manifest.csv", [manifest_row(row) for row in rows])
    patients = len({row.patient_id for row in rows})
    SiteFolder(folder).write(
        SiteSettings(
            name=folder.name,
            data=SiteData(
                manifest=Path("manifest.csv"), root=root, declared_patients=declared(patients)
            ),
        ),
        # Approves no study: these folders are to be looked at, not to be trained on.
        Policy(max_epsilon=1.0, delta=1e-6),
    )
