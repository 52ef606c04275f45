"""What the server demands of a receipt before the arrays it came with count."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import ReceiptError, RunError
from fundusgen.privacy.keys import public_key
from fundusgen.privacy.receipt_folder import keep_receipt, read_receipts
from fundusgen.privacy.receipts import (
    Receipt,
    require_epsilon,
    require_follows,
    require_signed,
)
from fundusgen.run_folder import RunFolder


class ReceiptBook:
    """The receipts of a run: checked on arrival, kept for ever.

    Args:
        run: The run folder, with the public keys of the sites and what was kept before.

    Attributes:
        sites: Public keys by name of a site.
    """

    def __init__(self, run: RunFolder) -> None:
        """Read keys and receipts.

        Raises:
            RunError: No site is known.
            SiteError: A key cannot be used.
            ReceiptError: A receipt that was kept is damaged.
        """
        self.folder = run.receipts
        self.sites = _known_sites(run.known_sites)
        self._kept = {
            (receipt.site, receipt.sequence): receipt
            for receipts in read_receipts(run.receipts).values()
            for receipt in receipts
        }

    def accept(self, receipt: Receipt) -> None:
        """Check a receipt against the site's key, its own numbers and those before it; keep it.

        A receipt that is here already, signed and all, was asked for again and is accepted.

        Raises:
            ReceiptError: It is wrong; the reply must not count.
        """
        key = self.sites.get(receipt.site)
        if key is None:
            raise ReceiptError(
                f"a receipt of {receipt.site}, which is no site of this study",
                expected=f"one of {', '.join(sorted(self.sites))}",
                remedy="Add its node.pub to the folder of known sites",
            )
        require_signed(receipt, key)
        if self._kept.get((receipt.site, receipt.sequence)) == receipt:
            return
        require_epsilon(receipt)
        if (last := self._last(receipt.site)) is not None:
            require_follows(receipt, last)
        keep_receipt(self.folder, receipt)
        self._kept[receipt.site, receipt.sequence] = receipt

    def latest(self) -> dict[str, str]:
        """Digest of the last receipt of each site, by which a site finds what it forgot."""
        return {site: last.digest for site in self.sites if (last := self._last(site)) is not None}

    def _last(self, site: str) -> Receipt | None:
        numbers = [number for name, number in self._kept if name == site]
        return self._kept[site, max(numbers)] if numbers else None


def _known_sites(folder: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    keys = {
        path.stem: public_key(path.read_bytes(), str(path)) for path in sorted(folder.glob("*.pub"))
    }
    if not keys:
        raise RunError(
            f"No site is known: {folder} holds no public key",
            expected="NAME.pub of every hospital that takes part, NAME being that of its site.yaml",
            remedy="Give the folder of their node.pub files as --run-config 'sites=\"DIR\"'",
        )
    return keys
