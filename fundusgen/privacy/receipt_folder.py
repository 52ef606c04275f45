"""A folder of receipts: what a server keeps of its sites, and what an audit reads.

receipts/SITE/000017.json    the 17th receipt of the site's ledger, as it was signed
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from fundusgen.errors import ReceiptError
from fundusgen.privacy.receipts import Receipt
from fundusgen.storage import write_atomically


def keep_receipt(folder: Path, receipt: Receipt) -> None:
    """Keep a receipt under its site and number.

    Guarantee: whole or absent, and never in place of another receipt.
    Edge cases: the same receipt again is no error.

    Raises:
        ReceiptError: Another one is kept under the same number.
        OSError: The folder cannot be written.
    """
    path = folder / receipt.site / f"{receipt.sequence:06d}.json"
    if path.exists():
        if read_receipt(path) != receipt:
            raise ReceiptError(
                f"there is another receipt {receipt.sequence} of {receipt.site}",
                expected="one receipt of a number",
                remedy="Ask the site whether its ledger was restored from a backup",
            )
        return
    write_atomically(path, receipt.to_json() + "\n")


def read_receipt(path: Path) -> Receipt:
    """Read one receipt; its signature is not checked.

    Guarantee: as `Receipt.from_json`.
    Edge cases: none.

    Raises:
        ReceiptError: The file cannot be read, or is no receipt.
    """
    try:
        return Receipt.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ReceiptError(f"the receipt {path} cannot be read: {error}") from error
    except ReceiptError as error:
        raise ReceiptError(f"{path}: {error.found}", expected=error.expected) from error


def scan_receipts(folder: Path) -> tuple[list[Receipt], list[tuple[Path, str]]]:
    """Read all receipts of a folder that can be read, and say why the others cannot.

    Guarantee: nothing that lies there is passed over in silence; signatures are not checked. The
    same receipt in two places is given once.
    Edge cases: other files than `.json` are no receipts.

    Raises:
        ReceiptError: There is no such folder.
    """
    if not folder.is_dir():
        raise ReceiptError(
            f"There is no folder {folder}",
            expected="a folder of receipts, RUN/receipts of a server",
            remedy="Ask the study lead for this site's receipts",
        )
    found: dict[str, Receipt] = {}
    unreadable: list[tuple[Path, str]] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            receipt = read_receipt(path)
        except ReceiptError as error:
            unreadable.append((path, error.found))
            continue
        found.setdefault(receipt.to_json(), receipt)
    return list(found.values()), unreadable


def read_receipts(folder: Path) -> dict[str, list[Receipt]]:
    """Read all receipts of a folder, by site and in order of their numbers.

    Guarantee: all of them, or an error; signatures are not checked.
    Edge cases: an absent folder has none. Other files than `.json` are no receipts.

    Raises:
        ReceiptError: One cannot be read, or two differ under one number.
    """
    found: defaultdict[str, dict[int, Receipt]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.json")):
        receipt = read_receipt(path)
        if found[receipt.site].setdefault(receipt.sequence, receipt) != receipt:
            raise ReceiptError(
                f"{path} is another receipt {receipt.sequence} of {receipt.site}",
                expected="one receipt of a number",
            )
    return {site: [kept[n] for n in sorted(kept)] for site, kept in sorted(found.items())}


def numbers_of(receipts: Iterable[Receipt]) -> str:
    """Say which numbers some receipts have, shortly: `3, 5 to 9`.

    Guarantee: names every number once, and no other.
    Edge cases: the empty text for none.
    """
    numbers = sorted({receipt.sequence for receipt in receipts})
    parts: list[str] = []
    while numbers:
        run = [number for place, number in enumerate(numbers) if number == numbers[0] + place]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}")
        numbers = numbers[len(run) :]
    return ", ".join(parts)
