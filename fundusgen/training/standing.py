"""Where a site stands when it looks at a study: what it declares, allows and has spent.

Read from `site.yaml`, `policy.yaml` and the ledger, and from nothing else: no manifest and no
image. The ledger is opened to read, so that a client may hold it meanwhile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fundusgen.errors import SiteError
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_file import head_file
from fundusgen.privacy.ledger_rows import LedgerRow
from fundusgen.privacy.outbox import Outbox
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteFolder, SiteSettings
from fundusgen.training.answering import require_whole


@dataclass(frozen=True)
class Standing:
    """A site as a study finds it.

    Attributes:
        settings: Its declarations and its machine.
        delta: At which it counts.
        policy: What it allows; None for a site that is only thought of, which has no folder.
        rows: Its ledger, in order.
        sites_patients: Declared patients of all sites of the study, this one included; empty
            where they are not known.
    """

    settings: SiteSettings
    delta: float
    policy: Policy | None = None
    rows: tuple[LedgerRow, ...] = ()
    sites_patients: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a list of sites that leaves out this one."""
        if self.sites_patients and self.declared_patients not in self.sites_patients:
            raise SiteError(
                f"This site declares {self.declared_patients} patients, and none of the study's "
                f"sites ({', '.join(map(str, self.sites_patients))}) does",
                expected="the declared patients of all sites of the study, this one included",
                remedy=f"Add {self.declared_patients} to the list",
            )

    @property
    def declared_patients(self) -> int:
        """The number of patients that the site makes public."""
        return self.settings.data.declared_patients

    @property
    def spent(self) -> tuple[Event, ...]:
        """Everything that the ledger counts."""
        return tuple(row.event for row in self.rows)

    def total_epsilon(self, events: Iterable[Event]) -> float:
        """Count what events cost, by the rule of the site's policy where there is one.

        Raises:
            AccountingError: No sound total was found.
        """
        if self.policy is None:
            return epsilon(events, self.delta)
        return self.policy.total_epsilon(events)


def standing_of(site: SiteFolder, sites_patients: Sequence[int] = ()) -> Standing:
    """Read where a site stands.

    Args:
        site: The site's folder.
        sites_patients: Declared patients of all sites of a study, this one included.

    Raises:
        SiteError: Settings or policy cannot be read, or `sites_patients` leaves out this site.
        LedgerError: The ledger is damaged, changed or lost.
    """
    settings, policy = site.settings(), site.policy()
    return Standing(settings, policy.delta, policy, _rows(site), tuple(sites_patients))


def _rows(site: SiteFolder) -> tuple[LedgerRow, ...]:
    # Before the ledger: a client may add to both meanwhile, to the ledger first.
    replies = Outbox(site.outbox).requests()
    # A head or a reply without the database is a lost ledger, and not a new one: reading what is
    # not there says so.
    if not (site.ledger_file.exists() or head_file(site.ledger_file).exists() or replies):
        return ()
    with Ledger.read(site.ledger_file) as ledger:
        require_whole(ledger, replies)
        return ledger.rows()
