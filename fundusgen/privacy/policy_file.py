"""`policy.yaml` as a person reads and edits it: written with its reasons, changed line by line.

A policy is a person's document. Adding an approval touches no other line of it, and is only done
if the result says exactly what was meant.
"""

import re
import stat
from pathlib import Path

from fundusgen.errors import SiteError
from fundusgen.privacy.policy import Policy, parse_policy
from fundusgen.settings_file import dump_settings
from fundusgen.storage import write_atomically

_WHY = {
    "max_epsilon": "Most that one patient may be exposed, over all studies. Not exceeded.",
    "delta": "At which epsilon is counted: well below one over the number of patients.",
    "composition": "fixed: exact if studies are not chosen by what earlier ones gave.\n"
    "adaptive: holds whatever is chosen, for about a tenth more noise (a Renyi filter).",
    "studies": "Hashes of approved studies: fundusgen site approve STUDY.yaml --site DIR",
    "code": "Hashes of approved code, or any: fundusgen site approve-code DIR",
    "models": "Families of models that may be trained here.",
    "max_rounds_per_study": "Longest study that is answered.",
    "min_noise_multiplier": "Least noise of any mechanism, over its sensitivity.",
    "min_patients": "Fewest declared patients with which this site takes part.",
    "noise": "secure: from a cryptographic generator. fast is for simulations.",
    "release": "What may leave in a round. No figure about training has a mechanism of its own\n"
    "yet, so metrics is empty: all of them stay here.",
}
# What may stand behind a setting on its line, or alone on one.
_REST = r"[ \t]*(?:#.*)?\r?\n"


def dump_policy(policy: Policy) -> str:
    """Write a policy as YAML with the meaning of every setting.

    Guarantee: `parse_policy` reads the same policy back.
    Edge cases: none.
    """
    parts = []
    for name, value in policy.model_dump(mode="json").items():
        comment = "".join(f"# {line}\n" for line in _WHY[name].splitlines())
        parts.append(comment + dump_settings({name: value}))
    return "# What this site allows. Read before every answer; anything unclear is a no.\n\n" + (
        "\n".join(parts)
    )


def add_to_list(path: Path, key: str, digest: str, comment: str) -> Policy:
    """Add a hash to one of the policy's lists, leaving every other line as it is.

    Guarantee: on return the file says what it said before, and the hash; whole or unchanged.
    Every other line is the same to the byte, its ending included.
    Edge cases: a hash that is there already changes nothing. A file whose list is written in an
    unforeseen way is left alone, with the line to add by hand.

    Args:
        path: The policy file.
        key: `studies` or `code`.
        digest: The hash.
        comment: Stands behind it, for people; what does not print becomes a space.

    Returns:
        The policy as it is now.

    Raises:
        SiteError: The policy cannot be read, or the line cannot be placed for sure.
        OSError: It cannot be written.
    """
    text = _read(path)
    before = parse_policy(text, source=str(path))
    listed: tuple[str, ...] | str = getattr(before, key)
    if listed == "any" or digest in listed:
        return before
    wanted = before.model_copy(update={key: (*listed, digest)})
    printable = "".join(letter if letter.isprintable() else " " for letter in comment)
    line = f'- "{digest}"  # {" ".join(printable.split())}'
    changed = _inserted(text, key, line)
    try:
        after = parse_policy(changed, source=str(path))
    except SiteError:
        after = before
    if after != wanted:
        raise SiteError(
            f"The list '{key}' of {path} is written in a way that cannot be changed for sure",
            expected=f"'{key}:' on a line of its own, and a hash on each line after it",
            remedy=f"Add this line to it by hand: {line}",
        )
    write_atomically(path, changed, stat.S_IMODE(path.stat().st_mode))
    return after


def _inserted(text: str, key: str, line: str) -> str:
    """Put a line at the end of a block list, make one of an empty list, or begin one."""
    end = "\r\n" if "\r\n" in text else "\n"
    whole = text if text.endswith("\n") else text + end
    block = re.compile(rf"^{key}:{_REST}(?:(?:{_REST})*([ \t]*)-.*\n)+", re.MULTILINE)
    empty = re.compile(rf"^({key}:)[ \t]*\[[ \t]*\]({_REST})", re.MULTILINE)
    if (found := block.search(whole)) is not None:
        changed = whole[: found.end()] + found[1] + line + end + whole[found.end() :]
    elif (found := empty.search(whole)) is not None:
        changed = whole[: found.start()] + found[1] + found[2] + line + end + whole[found.end() :]
    else:
        changed = f"{whole}{key}:{end}{line}{end}"
    return changed if whole == text else changed.removesuffix(end)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SiteError(
            f"The policy {path} cannot be read: {error}",
            expected="a policy.yaml",
            remedy="Make a site folder with: fundusgen site init",
        ) from error
