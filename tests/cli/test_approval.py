"""A person at a hospital allows a study and the code: shown, asked, written down, then let in."""

import getpass
import io
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fundusgen import __version__
from fundusgen.cli import approval
from fundusgen.cli.main import main
from fundusgen.code import code_hash
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.models.factory import build_model
from fundusgen.phantom.site import write_site_folder
from fundusgen.privacy.keys import key_fingerprint, public_key, signing_key
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_rows import Remark
from fundusgen.privacy.policy import Policy, RefusalReason
from fundusgen.privacy.remarks import last_policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.storage import write_atomically
from fundusgen.study import Study, dump_study
from fundusgen.training.answering import answer

PATIENTS = 12
OTHER_CODE = "0" * 64
STUDY = Study.model_validate(
    {
        "study_id": "retina-2026",
        "conditions": ["normal", "amd"],
        "image_size": 32,
        "model": {"width": 4, "latent": 4},
        "stages": {"dpsgd": {"steps_per_round": 2, "sample_rate": 0.5, "views_per_patient": 2}},
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 3},
    }
)
HOSTILE_NAMES = [
    "",
    "  ",
    "a\nmax_epsilon: 99",
    "a\rb",
    "a\x1b[2Jb",
    "a\x85b",
    "a\u202eb",
    "x" * 10_000,
]


@dataclass(frozen=True)
class Ended:
    """How a command ended; words are told apart by single spaces, wherever the lines break."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return " ".join(self.out.split())

    @property
    def error(self) -> str:
        assert self.status == 1
        assert self.err.startswith("error: ")
        assert "Traceback" not in self.err
        return " ".join(self.err.split())


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    """Run `fundusgen site` with arguments and with what is typed, on no terminal."""
    monkeypatch.setenv("COLUMNS", "80")

    def ended(*arguments: object, typed: str = "") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        monkeypatch.setattr(sys, "argv", ["fundusgen", "site", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return ended


@pytest.fixture(scope="module")
def made_site(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("made") / "site"
    write_site_folder(
        folder / "data", patients=PATIENTS, seed=5, size_px=64,
        conditions_mix={"normal": 1, "amd": 1},
    )  # fmt: skip
    data = SiteData(
        manifest=Path("data/manifest.csv"), root=Path("data"), declared_patients=PATIENTS
    )
    SiteFolder(folder).write(
        SiteSettings(name="north", data=data, threads=1),
        Policy(max_epsilon=8.0, delta=1e-5, code=(code_hash(),)),
    )
    return folder


@pytest.fixture
def site(made_site, tmp_path) -> SiteFolder:
    return SiteFolder(Path(shutil.copytree(made_site, tmp_path / "site")))


@pytest.fixture
def study(tmp_path) -> Path:
    write_atomically(tmp_path / "study.yaml", dump_study(STUDY))
    return tmp_path / "study.yaml"


@pytest.fixture
def approve(run, site, study) -> Run:
    return lambda *options, typed="": run(
        "approve", study, "--site", site.path, *options, typed=typed
    )


@pytest.fixture
def approve_code(run, site) -> Run:
    return lambda *options, typed="": run("approve-code", site.path, *options, typed=typed)


@pytest.fixture(params=["approve", "approve_code"])
def either(request, site) -> Run:
    """One of the two commands, on a site where its answer is still open."""
    set_code(site, OTHER_CODE)
    run: Run = request.getfixturevalue(request.param)
    return run


@pytest.fixture
def terminal(monkeypatch) -> Iterator[Callable[[str], None]]:
    """Type on a real terminal, which stands for the standard input."""
    keyboard, screen = pty.openpty()
    with os.fdopen(screen, "r") as stdin:

        def typed(text: str) -> None:
            os.write(keyboard, text.encode())
            monkeypatch.setattr(sys, "stdin", stdin)

        yield typed
    os.close(keyboard)


def set_code(site: SiteFolder, *hashes: str) -> None:
    """Change the policy's list of code by hand."""
    listed = "".join(f'\n- "{digest}"' for digest in hashes) or " []"
    text = site.policy_file.read_text()
    changed = re.sub(r"^code:.*\n(?:- .*\n)*", f"code:{listed}\n", text, flags=re.MULTILINE)
    site.policy_file.write_text(changed)


def answered(site: SiteFolder) -> Answer | Refusal:
    """What a server gets that asks for the study's first round."""
    weights = {name: value.numpy() for name, value in build_model(STUDY).state_dict().items()}
    request = Request(STUDY.agreed_json(), STUDY.study_hash, 1, "dpsgd", weights)
    return answer(site, request)


def remarks(site: SiteFolder) -> tuple[Remark, ...]:
    with Ledger.read(site.ledger_file) as ledger:
        return ledger.remarks()


def state_of(site: SiteFolder) -> dict[str, bytes]:
    """Everything that an approval may change."""
    paths = [site.policy_file, *site.path.glob("ledger.db*")]
    return {path.name: path.read_bytes() for path in paths if path.name != "ledger.db.lock"}


def test_a_study_is_shown_with_what_it_costs_and_does_before_the_question(approve) -> None:
    ended = approve(typed="n\n")
    shown, question = ended.said.split("Approve study retina-2026 at north? [y/N]:")
    assert re.search(r"epsilon from 0\.00 to 7\.\d\d of 8 at delta 1e-05", shown)
    assert "normal, amd; 32 by 32 pixels" in shown
    assert "vae, width 4, latent 4" in shown
    assert "3 of 2 steps each" in shown
    assert "secure, from a cryptographic generator" in shown
    assert "at least 2 to begin a round, 1 to finish it" in shown
    assert STUDY.study_hash in shown
    assert "That was a no. Nothing was changed." in question


@pytest.mark.parametrize(
    ("where", "said"), [("server", "at the server, not here"), ("sites", "here, from the part")]
)
def test_it_is_said_who_trains_the_generator_of_a_gan(run, site, study, where, said) -> None:
    model = {"kind": "gan", "width": 4, "latent": 4, "discriminator_width": 4, "generator": where}
    gan = Study.model_validate({**STUDY.model_dump(), "model": model})
    write_atomically(study, dump_study(gan))
    shown = run("approve", study, "--site", site.path, typed="n\n").said
    assert "gan, width 4, latent 4" in shown
    assert "its discriminator.*vote.*, discriminator.embedding.*, on your patients" in shown
    assert said in shown


def test_that_nobody_has_approved_it_is_no_reason_against_approving(approve) -> None:
    said = approve(typed="n\n").said
    assert "The policy of north allows it." in said
    assert "Nobody has approved" not in said


def test_the_forecast_covers_the_whole_study_where_its_sites_are_given(approve) -> None:
    said = approve("--sites-patients", "12,5000,5000", typed="n\n").said
    assert "Averaged over all sites" in said
    assert "none of the study's sites" in approve("--sites-patients", "500").error


@pytest.mark.parametrize("typed", ["n\n", "\n", "no\n", "", "what\n", "maybe\n\n"])
def test_anything_but_a_yes_is_a_no_and_changes_nothing(either, site, typed) -> None:
    before = state_of(site)
    ended = either(typed=typed)
    assert ended.status == 1
    assert "othing was changed" in ended.said
    assert "othing was changed" in ended.said
    assert state_of(site) == before


def test_no_answer_where_nobody_can_type_says_how_to_give_one(either) -> None:
    said = either().said
    assert "No answer is a no" in said
    assert "give --yes and --by NAME" in said


def test_a_study_is_refused_until_a_person_says_yes_and_then_answered(approve, site) -> None:
    assert answered(site) == Refusal(RefusalReason.STUDY_NOT_APPROVED)
    assert approve(typed="n\n").status == 1
    assert answered(site) == Refusal(RefusalReason.STUDY_NOT_APPROVED)
    ended = approve("--by", "M. Meier", typed="y\n")
    assert ended.status == 0
    assert "Study retina-2026 is approved at north, by M. Meier." in ended.said
    told = ended.said.split("is approved at north")[1]
    assert STUDY.study_hash in told
    assert "The study lead's hash must be equal to it" in told
    assert isinstance(answered(site), Answer)


def test_a_yes_to_a_study_is_in_the_ledger_with_who_gave_it_and_the_cost_they_saw(
    approve, site
) -> None:
    said = approve("--by", "M. Meier", typed="y\n").said
    approved, policy = remarks(site)
    assert (approved.kind, approved.study_id) == ("approved", "retina-2026")
    assert approved.note["study"] == approved.study_hash == STUDY.study_hash
    assert approved.note["by"] == "M. Meier"
    assert f"to {approved.note['epsilon_after_study']:.2f} of 8" in said
    assert 7.0 < approved.note["epsilon_after_study"] <= 8.0
    assert (approved.note["max_epsilon"], approved.note["delta"]) == (8.0, 1e-5)
    now = site.policy()
    assert policy == last_policy(remarks(site))
    assert approved.policy_hash == policy.policy_hash == now.policy_hash
    assert policy.note["studies"] == [STUDY.study_hash]


def test_the_policy_gets_one_line_with_who_and_when_and_keeps_all_others(approve, site) -> None:
    before = site.policy_file.read_text().splitlines()
    approve("--by", "M. Meier", "--yes")
    after = site.policy_file.read_text().splitlines()
    added = [line for line in after if line not in before and line != "studies:"]
    assert [line for line in before if line not in after] == ["studies: []"]
    (line,) = added
    assert re.fullmatch(
        rf'- "{STUDY.study_hash}"  # retina-2026, approved \d{{4}}-\d\d-\d\d by M\. Meier', line
    )
    assert site.policy().studies == (STUDY.study_hash,)


def test_the_ledger_says_yes_before_the_policy_does(either, site, monkeypatch) -> None:
    """A crash between leaves a yes that lets nothing in, and never the other way round."""
    before = site.policy_file.read_bytes()

    def crash(*_: object) -> None:
        assert [remark.kind for remark in remarks(site)] == ["approved"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(approval, "add_to_list", crash)
        assert either("--yes").status == 130
    assert site.policy_file.read_bytes() == before
    assert answered(site) == Refusal(RefusalReason.STUDY_NOT_APPROVED)
    assert either("--yes").status == 0


def test_what_is_approved_already_is_said_and_changes_nothing(either, site) -> None:
    assert either("--yes").status == 0
    before = state_of(site)
    ended = either(typed="y\n")
    assert ended.status == 0
    assert "already. Nothing was changed." in ended.said
    assert "[y/N]" not in ended.said
    assert state_of(site) == before


def test_the_simulation_part_of_a_study_is_not_what_is_approved(approve, study, site) -> None:
    approve("--yes")
    text = study.read_text()
    assert "max_epsilon: null" in text
    study.write_text(text.replace("max_epsilon: null", "max_epsilon: 3.0"))
    assert "is approved at north already" in approve().said
    study.write_text(text.replace("rounds: 3", "rounds: 4"))
    assert "Approve study" in approve(typed="n\n").said


def test_a_study_that_the_policy_forbids_otherwise_can_be_approved_and_is_still_refused(
    approve, site
) -> None:
    text = site.policy_file.read_text()
    site.policy_file.write_text(
        text.replace("max_rounds_per_study: 1000", "max_rounds_per_study: 2")
    )
    ended = approve(typed="y\n")
    assert ended.status == 0
    before, after = ended.said.split("[y/N]:")
    assert "north will refuse it, until this is changed: - The study has 3 rounds" in before
    assert "north will still refuse it, until this is changed: - The study has 3 rounds" in after
    assert answered(site) == Refusal(RefusalReason.TOO_MANY_ROUNDS)


def test_a_cost_above_the_cap_is_shown_as_a_reason_for_refusal(approve, site) -> None:
    text = site.policy_file.read_text()
    site.policy_file.write_text(text.replace("max_epsilon: 8.0", "max_epsilon: 2.0"))
    said = approve(typed="n\n").said
    assert "of 2 at delta" in said
    assert "Expected: at most 2 by this site's policy" in said.split("You can approve")[1]


def test_someone_else_may_work_with_the_site_while_a_person_reads(
    approve, site, monkeypatch
) -> None:
    def meanwhile(_: str) -> bool:
        assert answered(site) == Refusal(RefusalReason.STUDY_NOT_APPROVED)
        return True

    monkeypatch.setattr(approval.typer, "confirm", meanwhile)
    assert approve().status == 0
    assert [remark.kind for remark in remarks(site)] == ["policy", "refused", "approved", "policy"]


def test_a_ledger_that_a_client_holds_is_waited_for_and_then_told(
    either, site, monkeypatch
) -> None:
    monkeypatch.setattr(approval, "LEDGER_WAIT_S", 0.1)
    before = site.policy_file.read_bytes()
    with Ledger.open(site.ledger_file):
        error = either(typed="y\n").error
    assert "Nothing was approved: another client works with this site" in error
    assert "Then approve again" in error
    assert site.policy_file.read_bytes() == before
    assert remarks(site) == ()


@pytest.mark.parametrize("damage", ["torn", "lost", "forgotten"])
def test_nothing_is_approved_with_a_ledger_that_is_damaged_or_lost(either, site, damage) -> None:
    with Ledger.open(site.ledger_file) as ledger:
        ledger.remark("replayed", {"event_id": 1})
    if damage == "torn":
        site.ledger_file.write_bytes(site.ledger_file.read_bytes()[:2000])
    elif damage == "lost":
        site.ledger_file.unlink()
    else:
        for path in site.path.glob("ledger.db*"):
            path.unlink()
        site.outbox.mkdir()
        (site.outbox / f"{'ab' * 16}.{'0' * 64}").write_bytes(b"a reply")
    before = state_of(site)
    ended = either(typed="y\n")
    assert "ledger" in ended.error
    assert "[y/N]" not in ended.out
    assert state_of(site) == before


@pytest.mark.parametrize("text", ["max_epsilon: plenty\n", "max_epsilon: 8\ndelta: 2\n", "", "{"])
def test_nothing_is_approved_under_a_policy_that_cannot_be_read(either, site, text) -> None:
    site.policy_file.write_text(text)
    assert str(site.policy_file) in either("--yes").error
    assert state_of(site) == {"policy.yaml": text.encode()}


def test_a_list_that_cannot_be_changed_for_sure_is_left_with_the_line_to_add(approve, site) -> None:
    text = site.policy_file.read_text().replace("studies: []", f'studies: ["{"1" * 64}"]')
    site.policy_file.write_text(text)
    error = approve("--by", "M. Meier", "--yes").error
    assert f'Add this line to it by hand: - "{STUDY.study_hash}" # retina-2026, approved' in error
    assert site.policy_file.read_text() == text
    assert [remark.note["by"] for remark in remarks(site)] == ["M. Meier"]


def test_a_policy_that_cannot_be_written_ends_in_a_sentence(either, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(approval, "add_to_list", full)
    assert "policy.yaml cannot be written: No space left on device" in either("--yes").error


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_a_name_that_no_line_can_hold_is_refused_before_anything_is_asked(
    either, site, name
) -> None:
    before = state_of(site)
    ended = either("--by", name, typed="y\n")
    assert "Give it with --by NAME" in ended.error
    assert (ended.out, len(ended.err) < 300) == ("", True)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x85\u202e]", ended.err)
    assert state_of(site) == before


@pytest.mark.parametrize(
    "name", ["O'Brien", '"Dr." #3: \\n', "- a: [b]", "{x}", "[bold]b[/bold]", "Łucja Żółć", "李"]
)
def test_a_name_with_odd_letters_is_kept_as_it_is(either, site, name) -> None:
    before = site.policy().model_dump()
    ended = either("--by", name, typed="y\n")
    assert ended.status == 0
    assert f"by {name}." in ended.said
    assert remarks(site)[0].note["by"] == name
    assert f"by {name}\n" in site.policy_file.read_text()
    changed = {key for key, value in site.policy().model_dump().items() if before[key] != value}
    assert len(changed) == 1


def test_without_a_name_it_is_the_login_name(either, site, monkeypatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "meier")
    either(typed="y\n")
    assert remarks(site)[0].note["by"] == "meier"


def test_where_there_is_not_even_a_login_name_one_is_asked_for(either, site, monkeypatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    before = state_of(site)
    assert "Give it with --by NAME" in either("--yes").error
    assert state_of(site) == before


@pytest.mark.parametrize(("typed", "name"), [("y\nM. Meier\n", "M. Meier"), ("y\n\n", "login")])
def test_on_a_terminal_the_name_is_asked_for(
    terminal, site, monkeypatch, capsys, typed, name
) -> None:
    set_code(site, OTHER_CODE)
    monkeypatch.setattr(getpass, "getuser", lambda: "login")
    monkeypatch.setattr(sys, "argv", ["fundusgen", "site", "approve-code", str(site.path)])
    terminal(typed)
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "Your name, for the ledger [login]:" in capsys.readouterr().out
    assert remarks(site)[0].note["by"] == name


def test_a_folder_that_is_no_site_and_a_study_that_is_none_are_told(
    run, site, study, tmp_path
) -> None:
    for arguments in (["approve-code"], ["approve", study, "--site"], ["keys"]):
        assert "a site folder with site.yaml" in run(*arguments, tmp_path).error
    study.write_text("study_id: a\n")
    assert "'privacy' is missing" in run("approve", study, "--site", site.path).error


def test_code_is_shown_with_its_version_hash_and_what_is_approved_until_now(
    approve_code, site
) -> None:
    set_code(site, OTHER_CODE)
    shown, _ = approve_code(typed="n\n").said.split("Approve this code at north? [y/N]:")
    assert f"fundusgen {__version__}" in shown
    assert code_hash() in shown
    assert f"Approved at north until now: {OTHER_CODE}" in shown
    set_code(site)
    assert "Approved at north until now: nothing" in approve_code(typed="n\n").said


def test_code_is_refused_until_a_person_says_yes_and_then_runs(approve, approve_code, site) -> None:
    set_code(site, OTHER_CODE)
    assert "approve it with: fundusgen site approve-code DIR" in approve("--yes").said
    assert answered(site) == Refusal(RefusalReason.CODE_NOT_APPROVED)
    said = approve_code("--by", "M. Meier", typed="y\n").said
    assert "This code is approved at north, by M. Meier." in said
    assert "What was approved before stays approved." in said
    assert site.policy().code == (OTHER_CODE, code_hash())
    assert f"# fundusgen {__version__}, approved" in site.policy_file.read_text()
    assert isinstance(answered(site), Answer)


def test_a_yes_to_code_is_in_the_ledger_and_about_no_study(approve_code, site) -> None:
    set_code(site)
    approve_code("--by", "M. Meier", "--yes")
    approved, policy = remarks(site)
    assert approved.kind == "approved"
    assert (approved.study_id, approved.study_hash) == ("", "")
    assert approved.note.keys() == {"code", "version", "by", "at"}
    assert (approved.note["code"], approved.note["by"]) == (code_hash(), "M. Meier")
    assert approved.policy_hash == policy.policy_hash == site.policy().policy_hash


def test_a_policy_of_any_code_leaves_nothing_to_approve(approve_code, site) -> None:
    site.policy_file.write_text(
        re.sub("code:\n- .*\n", "code: any\n", site.policy_file.read_text())
    )
    before = state_of(site)
    ended = approve_code("--yes")
    assert ended.status == 0
    assert "allows any code" in ended.said
    assert "There is nothing to approve." in ended.said
    assert state_of(site) == before


def keys_of(site: SiteFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in site.keys.iterdir()}


def test_keys_that_are_there_are_shown_as_ssh_keygen_shows_them_and_not_changed(run, site) -> None:
    before = keys_of(site)
    ended = run("keys", site.path)
    assert ended.status == 0
    assert "No key is missing." in ended.said
    assert str(site.keys / "node.pub") in ended.out
    assert key_fingerprint(signing_key(site.keys).public_key()) in ended.out
    assert keys_of(site) == before
    if keygen := shutil.which("ssh-keygen"):
        command = [keygen, "-lf", str(site.keys / "node.pub")]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert listed.stdout.split()[1] in ended.out


def test_a_site_made_before_the_secret_of_its_data_gets_one(run, site) -> None:
    (site.keys / "fingerprint").unlink()
    before = keys_of(site)
    assert "Made fingerprint, a secret that stays here." in run("keys", site.path).said
    after = keys_of(site)
    assert len(after.pop("fingerprint")) == 32
    assert after == before
    assert stat.S_IMODE((site.keys / "fingerprint").stat().st_mode) == 0o600


def test_a_private_key_without_its_public_half_gets_the_same_one_again(run, site) -> None:
    before = keys_of(site)
    (site.keys / "node.pub").unlink()
    assert "Made node.pub again, from node." in run("keys", site.path).said
    assert keys_of(site) == before


def test_a_lost_private_key_is_replaced_and_the_old_public_half_is_kept(run, site) -> None:
    for number in (1, 2):
        old = (site.keys / "node.pub").read_bytes()
        (site.keys / "node").unlink()
        said = run("keys", site.path).said
        assert "must register the new node.pub" in said
        assert (site.keys / f"node.pub.{number}").read_bytes() == old
    own = signing_key(site.keys).public_key()
    assert key_fingerprint(own) in said
    new = public_key((site.keys / "node.pub").read_bytes(), "node.pub")
    assert key_fingerprint(new) == key_fingerprint(own)
    assert stat.S_IMODE((site.keys / "node").stat().st_mode) == 0o600


def test_a_site_without_any_key_gets_all_of_them(run, site) -> None:
    shutil.rmtree(site.keys)
    said = run("keys", site.path).said
    assert "Made node and node.pub, a new pair of keys." in said
    assert "old node.pub" not in said
    assert keys_of(site).keys() == {"node", "node.pub", "fingerprint"}
    assert stat.S_IMODE(site.keys.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["another pair", "no key", "short secret", "broken", "dangling"])
def test_a_key_that_cannot_be_used_is_named_and_left_as_it_is(
    run, site, made_site, tmp_path, damage
) -> None:
    if damage == "another pair":
        named = site.keys / "node.pub"
        (site.keys / "node").unlink()
        run("keys", site.path)
        named.write_bytes((made_site / "keys" / "node.pub").read_bytes())
    elif damage == "no key":
        (named := site.keys / "node.pub").write_text("ecdsa-sha2-nistp384 AAAA\n")
    elif damage == "short secret":
        (named := site.keys / "fingerprint").write_bytes(b"12345")
    elif damage == "broken":
        (named := site.keys / "node").write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
    else:
        # A key on a disk that is not mounted just now is not a key that was lost.
        (named := site.keys / "node").unlink()
        named.symlink_to(tmp_path / "away")
    before = {path.name: path.is_symlink() or path.read_bytes() for path in site.keys.iterdir()}
    error = run("keys", site.path).error
    assert str(named) in error
    assert "move the file away and run this again" in error
    after = {path.name: path.is_symlink() or path.read_bytes() for path in site.keys.iterdir()}
    assert after == before


@pytest.mark.parametrize("command", ["approve", "approve-code", "keys"])
def test_the_commands_explain_themselves(run, command) -> None:
    ended = run(command, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert f"Usage: fundusgen site {command}" in ended.out


def test_a_site_that_has_only_approved_has_spent_nothing(approve, run, site) -> None:
    approve("--yes")
    assert run("status", site.path).out == "north has spent nothing of epsilon 8\n"
