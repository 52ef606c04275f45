"""A policy is a person's document: an approval adds its line and touches nothing else."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fundusgen.errors import SiteError
from fundusgen.privacy.policy import Policy, load_policy, parse_policy
from fundusgen.privacy.policy_file import add_to_list, dump_policy

ONE, TWO, NEW = "a" * 64, "0b" * 32, "c0ffee00" * 8
COMMENT = "demo, approved 2026-11-24 by Ann"
LINE = f'- "{NEW}"  # {COMMENT}'

digests = st.text("0123456789abcdef", min_size=64, max_size=64) | st.text(
    "0123456789e", min_size=64, max_size=64
)
counts = st.integers(1, 10**15)
policies = st.builds(
    Policy,
    max_epsilon=st.floats(0, 1e9, exclude_min=True),
    delta=st.floats(1e-12, 1e-2),
    composition=st.sampled_from(["fixed", "adaptive"]),
    studies=st.lists(digests, max_size=4).map(tuple),
    code=st.lists(digests, max_size=4).map(tuple) | st.just("any"),
    models=st.sampled_from([(), ("vae",), ("vae", "vae"), ("gan", "vae")]),
    max_rounds_per_study=counts,
    min_noise_multiplier=st.floats(0, 1e9, exclude_min=True),
    min_patients=counts,
    noise=st.sampled_from(["secure", "fast"]),
    release=st.builds(
        lambda count: {"max_bytes_per_round": count}, counts
    ).map(lambda content: Policy.model_fields["release"].default.model_copy(update=content)),
)  # fmt: skip


def policy(**changes: Any) -> Policy:
    return Policy.model_validate({"max_epsilon": 8.0, "delta": 1e-5, **changes})


def file_of(folder: Path, text: str | bytes) -> Path:
    path = folder / "policy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def added(path: Path, key: str = "studies", digest: str = NEW, comment: str = COMMENT) -> str:
    """Add a hash, and check everything that holds for every policy; gives the text after."""
    before, listed = load_policy(path), getattr(load_policy(path), key)
    after = add_to_list(path, key, digest, comment)
    assert after == before.model_copy(update={key: (*listed, digest)})
    assert load_policy(path) == after
    text = path.read_bytes().decode()
    assert yaml.safe_load(text)[key] == [*listed, digest]
    # Once more, and nothing happens.
    written = path.stat()
    assert add_to_list(path, key, digest, "somebody else") == after
    assert path.stat() == written
    assert list(path.parent.iterdir()) == [path]
    return text


def refused(path: Path, key: str = "studies", digest: str = NEW, comment: str = COMMENT) -> str:
    """Fail to add a hash, and check that the file is as it was; gives the error."""
    before, written = path.read_bytes(), path.stat()
    with pytest.raises(SiteError) as caught:
        add_to_list(path, key, digest, comment)
    assert (path.read_bytes(), path.stat()) == (before, written)
    assert list(path.parent.iterdir()) == [path]
    return str(caught.value)


# -- written -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(policies)
def test_a_policy_that_is_written_is_read_back_the_same(written: Policy) -> None:
    text = dump_policy(written)
    again = parse_policy(text, source="again")
    assert again == written
    assert again.policy_hash == written.policy_hash
    assert yaml.safe_load(text) == written.model_dump(mode="json")


def test_every_setting_is_written_under_the_reason_for_it() -> None:
    lines = dump_policy(policy()).splitlines()
    for name in Policy.model_fields:
        (place,) = (n for n, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert lines[place - 1].startswith("# ")
        assert lines[place - 1] != lines[0]


# -- an approval ---------------------------------------------------------------------------------

HEAD = "# Our policy. Ask Ann before you change it: studies: []\nmax_epsilon: 8.00   # board, May\n"
TAIL = "delta: 1e-5\ncode: any\n"
# Files before and after; `+` stands for the line that is added.
PLACES = {
    "an empty list": ("studies: []\n", "studies:\n+\n"),
    "an empty list with spaces": ("studies:  [ ] \n", "studies: \n+\n"),
    "an empty list with a comment": ("studies: []  # none yet\n", "studies:  # none yet\n+\n"),
    "a list": (f"studies:\n- {ONE}\n", f"studies:\n- {ONE}\n+\n"),
    "a list of two": (f"studies:\n- {ONE}\n- '{TWO}'\n", f"studies:\n- {ONE}\n- '{TWO}'\n+\n"),
    "an indented list": (
        f"studies:\n  - {ONE}\n  - {TWO}\n",
        f"studies:\n  - {ONE}\n  - {TWO}\n  +\n",
    ),
    "a list with comments behind": (
        f"studies:   # approved\n-   {ONE}  # Ann - 2026\n",
        f"studies:   # approved\n-   {ONE}  # Ann - 2026\n+\n",
    ),
    "a list with comments between": (
        f"studies:\n# May\n- {ONE}\n\n  # June, - by Bob\n- {TWO}\n\n# No more.\n",
        f"studies:\n# May\n- {ONE}\n\n  # June, - by Bob\n- {TWO}\n+\n\n# No more.\n",
    ),
    "a list with empty lines between": (
        f"studies:\n\n  - {ONE}\n \n  - {TWO}\n\n\n",
        f"studies:\n\n  - {ONE}\n \n  - {TWO}\n  +\n\n\n",
    ),
    "a list with trailing spaces": (f"studies: \n- {ONE} \n", f"studies: \n- {ONE} \n+\n"),
    "a list under comments that name it": (
        f"# studies:\n# - {TWO}\n#studies: []\n # studies:\nstudies:\n- {ONE}\n",
        f"# studies:\n# - {TWO}\n#studies: []\n # studies:\nstudies:\n- {ONE}\n+\n",
    ),
    "a list with a hash that is an anchor": (
        f"studies:\n- &first {ONE}\n",
        f"studies:\n- &first {ONE}\n+\n",
    ),
}  # fmt: skip


def with_line(text: str, line: str = LINE) -> str:
    return text.replace("+", line)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_an_approval_adds_its_line_at_the_end_of_the_list_and_touches_no_other(
    tmp_path: Path, place: str, last: bool, end: str
) -> None:
    before, after = PLACES[place]
    around = (HEAD + TAIL, "") if last else (HEAD, TAIL)
    path = file_of(tmp_path, before.join(around).replace("\n", end))
    assert added(path) == with_line(after).join(around).replace("\n", end)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("place", PLACES)
def test_a_file_without_a_newline_at_its_end_has_none_afterwards(
    tmp_path: Path, place: str, end: str
) -> None:
    before, after = (text.removesuffix("\n") for text in PLACES[place])
    start = (HEAD + TAIL).replace("\n", end)
    path = file_of(tmp_path, start + before.replace("\n", end))
    assert added(path) == start + with_line(after).replace("\n", end)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("rest", ["", "\n", "\n\n\n", "# no more\n", " # no more\n  \n", "---"])
def test_a_list_that_is_not_there_is_begun_at_the_end(tmp_path: Path, rest: str, end: str) -> None:
    text = "---\n" + HEAD + TAIL if rest == "---" else HEAD + TAIL + rest
    path = file_of(tmp_path, text.replace("\n", end))
    assert added(path) == f"{text}studies:\n{LINE}\n".replace("\n", end)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_that_is_not_there_is_begun_on_a_line_of_its_own(tmp_path: Path, end: str) -> None:
    text = (HEAD + TAIL + "# no newline").replace("\n", end)
    path = file_of(tmp_path, text)
    assert added(path) == f"{text}{end}studies:{end}{LINE}"


def test_code_is_approved_in_its_own_list(tmp_path: Path) -> None:
    text = f"max_epsilon: 8\ncode: []\nstudies:\n- {ONE}\ndelta: 1e-5\ncomposition: fixed\n"
    path = file_of(tmp_path, text)
    assert added(path, "code") == text.replace("code: []\n", f"code:\n{LINE}\n")
    assert load_policy(path).studies == (ONE,)


def test_a_policy_that_the_site_was_made_with_takes_approvals_in_their_order(
    tmp_path: Path,
) -> None:
    path = file_of(tmp_path, dump_policy(policy(code=(ONE,))))
    expected = path.read_text().replace("studies: []\n", "studies:\n1\n2\n3\n")
    expected = expected.replace(f"- {ONE}\n", f"- {ONE}\n4\n")
    for number, digest in enumerate((TWO, NEW, ONE, TWO), start=1):
        key = "code" if number == 4 else "studies"
        added(path, key, digest, f"number {number}")
        expected = expected.replace(f"\n{number}\n", f'\n- "{digest}"  # number {number}\n')
    assert path.read_text() == expected


def test_a_byte_order_mark_stays(tmp_path: Path) -> None:
    path = file_of(tmp_path, f"\ufeffmax_epsilon: 8\ndelta: 1e-5\nstudies:\n- {ONE}\n")
    assert added(path) == f"\ufeffmax_epsilon: 8\ndelta: 1e-5\nstudies:\n- {ONE}\n{LINE}\n"


@pytest.mark.parametrize("listed", [f"[{NEW}]", f"['{ONE}', \"{NEW}\"]", f"\n- {NEW}", f"[{NEW},]"])
def test_a_hash_that_is_listed_already_changes_nothing(tmp_path: Path, listed: str) -> None:
    path = file_of(tmp_path, f"max_epsilon: 8\ndelta: 1e-5\nstudies: {listed}")
    before, written = path.read_bytes(), path.stat()
    assert add_to_list(path, "studies", NEW, COMMENT) == load_policy(path)
    assert (path.read_bytes(), path.stat()) == (before, written)


def test_where_any_code_is_allowed_none_is_listed(tmp_path: Path) -> None:
    path = file_of(tmp_path, HEAD + TAIL)
    written = path.stat()
    assert add_to_list(path, "code", NEW, COMMENT).code == "any"
    assert (path.read_text(), path.stat()) == (HEAD + TAIL, written)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(policies, digests, st.sampled_from(["studies", "code"]), st.sampled_from(["\n", "\r\n"]))
def test_any_policy_takes_any_hash_and_keeps_every_line(
    tmp_path: Path, written: Policy, digest: str, key: str, end: str
) -> None:
    path = file_of(tmp_path, dump_policy(written).replace("\n", end))
    before = path.read_bytes().decode().split(end)
    listed = getattr(written, key)
    if listed == "any" or digest in listed:
        assert add_to_list(path, key, digest, COMMENT) == written
        assert path.read_bytes().decode().split(end) == before
        return
    after = added(path, key, digest).split(end)
    after.remove(f'- "{digest}"  # {COMMENT}')
    if not listed:
        after[after.index(f"{key}:")] = f"{key}: []"
    assert after == before


# -- what cannot be changed for sure -------------------------------------------------------------

UNSURE = {
    "a list on one line": f"studies: [{ONE}]\n",
    "a list on one line, quoted": f'studies: ["{ONE}", "{TWO}"]  # two\n',
    "a list over several lines": f"studies: [\n  {ONE},\n  {TWO},\n]\n",
    "a list opened on the next line": f"studies:\n  [{ONE}]\n",
    "an empty list on the next line": "studies:\n  []\n",
    "an empty list over two lines": "studies: [\n]\n",
    "a key in quotes": '"studies": []\n',
    "a key in quotes with a list": f"'studies':\n- {ONE}\n",
    "a key with a space": f"studies :\n- {ONE}\n",
    "a key that is announced": f"? studies\n:\n- {ONE}\n",
    "an anchor at an empty list": "studies: &none []\n",
    "an anchor at a list": f"studies: &all\n- {ONE}\n",
    "a hash over two lines": f"studies:\n-\n  {ONE}\n",
    "a folded hash": f"studies:\n- >-\n  {ONE}\n",
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("unsure", UNSURE)
def test_a_list_in_a_form_that_is_not_foreseen_is_left_alone_with_the_line_to_add(
    tmp_path: Path, unsure: str, end: str
) -> None:
    path = file_of(tmp_path, (HEAD + UNSURE[unsure] + TAIL).replace("\n", end))
    assert load_policy(path).max_epsilon == 8.0
    said = refused(path)
    assert said.endswith(f"Add this line to it by hand: {LINE}.")
    assert "'studies'" in said


@pytest.mark.parametrize(
    "text",
    [
        "{max_epsilon: 8, delta: 1e-5, studies: []}\n",
        "{max_epsilon: 8, delta: 1e-5}\n",
        '{\n  "max_epsilon": 8,\n  "delta": 1e-5,\n  "studies": []\n}\n',
        "{\nmax_epsilon: 8,\ndelta: 1e-5,\nstudies: []\n}\n",
        "  max_epsilon: 8\n  delta: 1e-5\n  studies: []\n",
        "  max_epsilon: 8\n  delta: 1e-5\n",
        "max_epsilon: 8\ndelta: 1e-5\n...\n",
        "max_epsilon: 8\ndelta: 1e-5\ncode: &none []\nstudies: *none\n",
        f"max_epsilon: 8\ndelta: 1e-5\ncode: &same\n- {ONE}\nstudies: *same\n",
        f"\ufeffstudies:\n- {ONE}\nmax_epsilon: 8\ndelta: 1e-5\n",
        f"max_epsilon: 8\rdelta: 1e-5\rstudies:\r- {ONE}\r",
    ],
)
def test_a_policy_in_a_form_that_is_not_foreseen_is_left_alone(tmp_path: Path, text: str) -> None:
    path = file_of(tmp_path, text)
    assert load_policy(path).delta == 1e-5
    assert LINE in refused(path)


@pytest.mark.parametrize("key", ["studies", "code"])
def test_a_list_that_another_setting_stands_for_changes_alone_or_not_at_all(
    tmp_path: Path, key: str
) -> None:
    """A line that is added to what an alias stands for would be added in two places."""
    other = "code" if key == "studies" else "studies"
    text = f"max_epsilon: 8\ndelta: 1e-5\n{key}: &same\n- {ONE}\n{other}: *same\n"
    assert LINE in refused(file_of(tmp_path, text), key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_epsilon: 8\n",
        "max_epsilon: 8\ndelta: 1e-5\nstudies:\n",
        "max_epsilon: 8\ndelta: 1e-5\nstudies_of_may: []\nstudies: []\n",
        f"max_epsilon: 8\ndelta: 1e-5\nstudies: []\nstudies:\n- {ONE}\n",
        "max_epsilon: 8\ndelta: 1e-5 # \u2028studies: []\n",
        "max_epsilon: 8\ndelta: 1e-5\nstudies: any\n",
        b"max_epsilon: 8\ndelta: 1e-5\nstudies: []\n# M\xfcnster\n",
    ],
)
def test_what_is_no_policy_is_left_alone(tmp_path: Path, text: str | bytes) -> None:
    assert "cannot be" in refused(file_of(tmp_path, text))


def test_a_policy_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        add_to_list(tmp_path / "policy.yaml", "studies", NEW, COMMENT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "digest",
    ["", "c0ffee", NEW.upper(), f"{NEW}\n", f'{NEW}"\nmax_epsilon: 80\n# "', f'{ONE}"\n- "{NEW}'],
)
@pytest.mark.parametrize("key", ["studies", "code"])
def test_what_is_no_hash_is_not_added(tmp_path: Path, key: str, digest: str) -> None:
    path = file_of(tmp_path, "max_epsilon: 8\ndelta: 1e-5\nstudies: []\ncode: []\n")
    refused(path, key, digest)


# -- a hostile name ------------------------------------------------------------------------------

HOSTILE = [
    "Ann\nmax_epsilon: 80", "Ann\r\nmax_epsilon: 80", "Ann\rmax_epsilon: 80", f"Ann\n- {TWO}",
    "Ann\x85max_epsilon: 80", "Ann\u2028max_epsilon: 80", "Ann\u2029max_epsilon: 80",
    "Ann\x0bmax_epsilon: 80", "Ann\x0cmax_epsilon: 80", "Ann\x1cmax_epsilon: 80",
    "Ann\n...\n---\nmax_epsilon: 80", "# Ann", "'Ann\"", '"]', "Ann: [", "*Ann", "&Ann !!str", "\\",
    "\\n", "%YAML 1.1", "\x00", "\x1b[2K", "\x7f", "\ud800", "\ufeff", "\ufffe", "\u202e",
    "\U000e0001", "", " ", "\t", "é 😀 病院", "x" * 100_000, r"\1\g<0>", "{0}", "%s",
]  # fmt: skip


@pytest.mark.parametrize("comment", HOSTILE, ids=lambda name: ascii(name[:30]))
@pytest.mark.parametrize("place", ["an empty list", "an indented list", "a list that is missing"])
def test_no_name_says_anything_but_a_name(tmp_path: Path, place: str, comment: str) -> None:
    before, after = PLACES.get(place, ("", "studies:\n+\n"))
    path = file_of(tmp_path, HEAD + TAIL + before)
    text = added(path, comment=comment)
    (line,) = set(text.splitlines()) - set((HEAD + TAIL + before).splitlines()) - {"studies:"}
    assert line.lstrip().startswith(f'- "{NEW}"  #')
    assert line.isprintable()
    assert text == with_line(HEAD + TAIL + after, line.lstrip())


def test_what_prints_of_a_name_is_kept_on_one_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, HEAD + TAIL)
    text = added(path, comment=" Ann \x1b[31m\n\u2028 Müller,\t病院 \ud800 # '1' \\n ")
    assert text.endswith(f"- \"{NEW}\"  # Ann [31m Müller, 病院 # '1' \\n\n")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=()))
    | st.text(" \t\r\n\x85\u2028\u2029\x0b\x1c#-:\"'[]{}\\&*!|>%\ufeff\ud800\x00a8")
)
def test_no_text_behind_a_hash_changes_what_a_policy_says(tmp_path: Path, comment: str) -> None:
    before = HEAD + "studies: []\n" + TAIL
    text = added(file_of(tmp_path, before), comment=comment)
    lines = text.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith(f'- "{NEW}"  #'))
    assert lines.pop(place).isprintable()
    assert "\n".join([*lines, ""]) == before.replace("\nstudies: []", "\nstudies:")


def test_the_line_to_add_by_hand_holds_nothing_that_does_not_print(tmp_path: Path) -> None:
    path = file_of(tmp_path, f"max_epsilon: 8\ndelta: 1e-5\nstudies: [{ONE}]\n")
    for comment in HOSTILE:
        assert refused(path, comment=comment).isprintable()


# -- whole or unchanged --------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["touch", "write_bytes", "replace", "fsync", "interrupt"])
def test_an_approval_that_cannot_be_written_leaves_the_policy_whole_and_nothing_behind(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, HEAD + "studies: []\n" + TAIL)
    before = path.read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise KeyboardInterrupt if step == "interrupt" else OSError(28, "No space left on device")

    def half(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        fails()

    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(os, "fsync", fails)
        elif step in ("write_bytes", "interrupt"):
            patch.setattr(Path, "write_bytes", half)
        else:
            patch.setattr(Path, step, fails)
        with pytest.raises((OSError, KeyboardInterrupt)):
            add_to_list(path, "studies", NEW, COMMENT)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    added(path)


def test_the_policy_is_replaced_in_one_step_by_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, HEAD + "studies: []\n" + TAIL)
    replace, seen = Path.replace, []

    def replaced(self: Path, target: Path) -> Path:
        seen.append((load_policy(self).studies, load_policy(path).studies, target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    add_to_list(path, "studies", NEW, COMMENT)
    assert seen == [((NEW,), (), path)]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_who_may_read_the_policy_stays_as_it_is(tmp_path: Path, mode: int) -> None:
    path = file_of(tmp_path, HEAD + "studies: []\n" + TAIL)
    path.chmod(mode)
    added(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
