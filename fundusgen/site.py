"""The site folder: what a hospital keeps, and what `site.yaml` says about it.

site.yaml     name, where the images are, the public number of patients, device
policy.yaml   what the site allows (fundusgen.privacy.policy)
ledger.db     what has been spent (fundusgen.privacy.ledger)
outbox/       released replies, for replay
cache/        framed images; patient data
keys/         the site's own keys (fundusgen.privacy.keys)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fundusgen.errors import SiteError
from fundusgen.privacy.keys import make_keys
from fundusgen.privacy.outbox import OUTBOX
from fundusgen.privacy.policy import Policy, load_policy
from fundusgen.privacy.policy_file import dump_policy
from fundusgen.settings_file import dump_settings, read_settings
from fundusgen.storage import write_atomically
from fundusgen.study import Name, describe

GradSampleMode = Literal["auto", "vmap", "hooks"]


class SiteData(BaseModel):
    """Where a site's images are.

    Attributes:
        manifest: CSV file, relative to the site folder unless absolute.
        root: Folder that the manifest's `file` column is relative to; nothing outside is read.
        columns: This manifest's names for the known columns, where they differ.
        ignored_columns: Columns of the manifest that are of no use here.
        one_image_per_patient: The site's statement that no patient has two images; only then
            may patient ids be missing.
        declared_patients: The number of patients the site makes public, rounded as it likes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Path
    root: Path
    columns: dict[str, str] = {}
    ignored_columns: tuple[str, ...] = ()
    one_image_per_patient: bool = False
    declared_patients: Annotated[int, Field(ge=1, le=1_000_000_000)]


class SiteSettings(BaseModel):
    """Content of `site.yaml`.

    Attributes:
        name: Name of the site; every server it takes part with sees it.
        data: Where its images are.
        device: A torch device, or `auto` for a GPU where there is one.
        threads: Threads of a round's training; all cores where absent.
        batch_patients: Patients whose gradients are held in memory at once. The site's own, so
            that no study can make its memory tell how many patients it has; changes speed and
            memory, not results. A GPU wants more.
        grad_sample_mode: How patients' gradients are taken: by `vmap`, by Opacus' `hooks`, or as
            is measured to be faster for what the study trains (`auto`). Changes speed and memory,
            not results; on a GPU the other one may be faster.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    data: SiteData
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    batch_patients: Annotated[int, Field(ge=1, le=4096)] = 32
    grad_sample_mode: GradSampleMode = "auto"


@dataclass(frozen=True)
class SiteFolder:
    """Paths of one site, and the settings in them.

    Attributes:
        path: The folder itself.
    """

    path: Path

    @property
    def settings_file(self) -> Path:
        """`site.yaml`."""
        return self.path / "site.yaml"

    @property
    def policy_file(self) -> Path:
        """`policy.yaml`."""
        return self.path / "policy.yaml"

    @property
    def ledger_file(self) -> Path:
        """The database of events."""
        return self.path / "ledger.db"

    @property
    def outbox(self) -> Path:
        """Released replies."""
        return self.path / OUTBOX

    @property
    def cache(self) -> Path:
        """Framed images of patients."""
        return self.path / "cache"

    @property
    def keys(self) -> Path:
        """The site's own keys."""
        return self.path / "keys"

    @property
    def log_file(self) -> Path:
        """What the client did, for the operator only."""
        return self.path / "client.log"

    def settings(self) -> SiteSettings:
        """Read and check `site.yaml`; paths come back absolute.

        Raises:
            SiteError: It is missing or wrong.
        """
        try:
            text = self.settings_file.read_text(encoding="utf-8")
            settings = read_settings(text, SiteSettings)
            absolute = {
                "manifest": self._absolute(settings.data.manifest),
                "root": self._absolute(settings.data.root),
            }
        except ValidationError as error:
            raise SiteError(
                f"{self.settings_file}: {describe(error, SiteSettings)}",
                remedy="Correct the file",
            ) from error
        # A path with a zero byte is a ValueError, and links in a circle are a RuntimeError.
        except (OSError, ValueError, RuntimeError) as error:
            raise SiteError(
                f"{self.settings_file} cannot be read: {' '.join(str(error).split())}",
                expected="a site folder with site.yaml",
                remedy="Make one with `fundusgen site init DIR`",
            ) from error
        return settings.model_copy(update={"data": settings.data.model_copy(update=absolute)})

    def policy(self) -> Policy:
        """Read and check `policy.yaml`.

        Raises:
            SiteError: It is missing or wrong; nothing is allowed then.
        """
        return load_policy(self.policy_file)

    def write(self, settings: SiteSettings, policy: Policy) -> None:
        """Write both settings files of a new site, and make its keys."""
        self.path.mkdir(parents=True, exist_ok=True)
        make_keys(self.keys)
        write_atomically(self.settings_file, dump_settings(settings.model_dump(mode="json")))
        write_atomically(self.policy_file, dump_policy(policy))

    def _absolute(self, path: Path) -> Path:
        return path if path.is_absolute() else (self.path / path).resolve()
