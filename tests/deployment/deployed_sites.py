"""A study of two rounds, and site folders of phantoms that take part in it across processes."""

import shutil
from pathlib import Path

from fundusgen.phantom.site import write_site_folder
from fundusgen.privacy.keys import PUBLIC_KEY
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.storage import write_atomically
from fundusgen.study import Study, dump_study

PATIENTS = 12


def deployed_study(file: Path, *, sites: int, rounds: int = 1) -> Study:
    """Write a small study for a number of sites to a file."""
    study = Study.model_validate(
        {
            "study_id": "deployed",
            "conditions": ["normal", "amd"],
            "image_size": 32,
            "model": {"width": 4, "latent": 4},
            "stages": {"dpsgd": {"steps_per_round": 2, "sample_rate": 0.5}},
            "privacy": {"target_epsilon": 8},
            "federation": {
                "rounds": rounds, "min_sites": sites, "quorum": sites, "timeout_s": 180,
            },
        }
    )  # fmt: skip
    write_atomically(file, dump_study(study))
    return study


def phantom_site(folder: Path, study: Study, *, code: str) -> SiteFolder:
    """Make a site folder, named as its folder, that has approved a study and some code."""
    mix = {"normal": 1.0, "amd": 1.0}
    write_site_folder(folder / "data", patients=PATIENTS, seed=5, size_px=64, conditions_mix=mix)
    site = SiteFolder(folder)
    data = SiteData(
        manifest=Path("data/manifest.csv"), root=Path("data"), declared_patients=PATIENTS
    )
    allowed = {"studies": (study.study_hash,), "code": code if code == "any" else (code,)}
    site.write(
        SiteSettings(name=folder.name, data=data, threads=1),
        Policy.model_validate({"max_epsilon": 8.0, "delta": 1e-5, **allowed}),
    )
    return site


def known_sites(folder: Path, *sites: SiteFolder) -> Path:
    """Lay out the sites' public keys as a study lead does."""
    folder.mkdir()
    for site in sites:
        shutil.copy(site.keys / PUBLIC_KEY, folder / f"{site.settings().name}.pub")
    return folder
