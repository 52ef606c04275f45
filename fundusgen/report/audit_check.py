"""Recipes with which anybody can check an audit without fundusgen; a test runs them as printed."""

from collections.abc import Sequence

from fundusgen.privacy.events import Event

CHAIN = """\
import hashlib, json, sqlite3

def digest(values):
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

ledger = sqlite3.connect("ledger.db")
ledger.row_factory = sqlite3.Row
link = digest(dict(ledger.execute("SELECT * FROM identity").fetchone()))
for row in ledger.execute("SELECT * FROM entries ORDER BY sequence"):
    values = dict(row)
    written = values.pop("digest")
    if values["previous"] != link or digest(values) != written:
        raise SystemExit(f"entry {row['sequence']} is not as it was written")
    link = written
print("unbroken, ending with", link)
"""
SIGNATURE = """\
import base64, json
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

key = serialization.load_ssh_public_key(open("node.pub", "rb").read().strip())
receipt = json.load(open("000001.json"))
signature = base64.b64decode(receipt.pop("signature"))
body = json.dumps(receipt, sort_keys=True, separators=(",", ":")).encode()
key.verify(signature, body, ec.ECDSA(hashes.SHA384()))   # raises if it is wrong
print("signed by the site:", receipt["site"], "epsilon", receipt["epsilon_total"])
"""
EPSILON = """\
import dp_accounting
from dp_accounting.pld import PLDAccountant

events = [   # noise multiplier, sample rate, steps
{events}
]
accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
for noise, rate, steps in events:
    step = dp_accounting.GaussianDpEvent(noise)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, step), steps)
print("epsilon", accountant.get_epsilon({delta!r}))
"""


def recipes(events: Sequence[Event], delta: float) -> list[tuple[str, str, str]]:
    """Give `(title, what it does, Python code)` of every check, for this history."""
    lines = "\n".join(
        f"    ({event.noise_multiplier!r}, {event.sample_rate!r}, {event.steps}),"
        for event in events
    )
    return [
        (
            "The total",
            "Computes epsilon of the events of this ledger with Google's dp-accounting "
            "(pip install dp-accounting).",
            EPSILON.format(events=lines, delta=delta),
        ),
        (
            "The chain",
            "Reads ledger.db with Python's own library and holds every entry against its digest "
            "and the one before.",
            CHAIN,
        ),
        (
            "A signature",
            "Holds a receipt against the site's public key (pip install cryptography).",
            SIGNATURE,
        ),
    ]
