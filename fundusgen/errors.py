"""The one exception tree of fundusgen.

Every error says what was found, what was expected and what to do about it. The command line
prints exactly that and no traceback. Nothing here may carry a patient id or a file name of a
patient across a site's boundary: what leaves a site is a `RefusalReason`, never a message.

    FundusgenError
    |-- StudyError            a study file
    |-- SiteError             a site folder: site.yaml, policy.yaml, keys
    |-- DataError             patient data at a site
    |   |-- ManifestError     the manifest as a whole
    |   `-- ImageError        one image
    |-- ModelError            a network, its weights or its configuration
    |-- PrivacyError          anything that would weaken or misstate the guarantee
    |   |-- AccountingError   parameters for which no epsilon can be given
    |   |-- LedgerError       the ledger or outbox of a site
    |   `-- ReceiptError      a statement of a release, or its signature
    |-- FederationError       messages, replies, quorum, checkpoints
    `-- RunError              a run folder, a runtime process, a port
"""


class FundusgenError(Exception):
    """Base of all errors that a user can act on.

    Args:
        found: What was found, as a sentence without its full stop.
        expected: What was expected instead; may be empty.
        remedy: What to do, in the imperative; may be empty.
    """

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        """Keep the three parts apart, so that each interface can set them as it likes."""
        super().__init__(found)
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        """Join the parts into sentences."""
        parts = [_sentence(self.found)]
        if self.expected:
            parts.append(_sentence(f"Expected: {self.expected}"))
        if self.remedy:
            parts.append(_sentence(self.remedy))
        return " ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep all three parts when the error crosses a process boundary."""
        return (_rebuild, (type(self), self.found, self.expected, self.remedy))


class StudyError(FundusgenError):
    """A study file that cannot be read or does not make sense."""


class SiteError(FundusgenError):
    """A site folder that is missing, incomplete or inconsistent."""


class DataError(FundusgenError):
    """Patient data that cannot be used. Stays at the site."""


class ManifestError(DataError):
    """A manifest that cannot be read as a whole. Stays at the site."""


class ImageError(DataError):
    """One image that cannot be used. Stays at the site."""


class ModelError(FundusgenError):
    """A network, weights or configuration that do not fit."""


class PrivacyError(FundusgenError):
    """Something that would weaken or misstate the privacy guarantee."""


class AccountingError(PrivacyError):
    """Parameters for which no sound epsilon can be given."""


class LedgerError(PrivacyError):
    """A ledger or outbox that is damaged, locked or contradicted."""


class ReceiptError(PrivacyError):
    """A receipt that is malformed, not signed, or contradicts what is known of its site."""


class FederationError(FundusgenError):
    """A message, reply or checkpoint that breaks the contract, or a quorum that is missing."""


class RunError(FundusgenError):
    """A run folder, runtime process or port that cannot be used."""


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _rebuild(kind: type[FundusgenError], found: str, expected: str, remedy: str) -> FundusgenError:
    return kind(found, expected=expected, remedy=remedy)
