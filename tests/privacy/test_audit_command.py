"""`fundusgen audit ledger` and `fundusgen site ledger repair` as a privacy officer meets them."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from answered_ledger import DELTA, PLAN, VOTES, AnsweredSite, digest_of
from typer.testing import CliRunner, Result

from fundusgen.cli import audit as audit_command
from fundusgen.cli.main import app
from fundusgen.errors import FundusgenError
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.keys import PUBLIC_KEY, signing_key
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.policy import Policy
from fundusgen.privacy.receipt_folder import keep_receipt
from fundusgen.site import SiteData, SiteFolder, SiteSettings

POLICY = Policy(
    max_epsilon=9.0, delta=DELTA, studies=(digest_of("retina"),), code=(digest_of("code"),)
)
ROUNDS = 4


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    site = SiteFolder(tmp_path / "north")
    data = SiteData(manifest=Path("manifest.csv"), root=Path(), declared_patients=300)
    site.write(SiteSettings(name="north", data=data), POLICY)
    return site


@pytest.fixture
def site(folder: SiteFolder) -> AnsweredSite:
    site = AnsweredSite(folder.ledger_file, policy=POLICY, key=signing_key(folder.keys))
    site.answer(1, VOTES)
    for round_number in range(2, ROUNDS + 1):
        site.answer(round_number)
    return site


@pytest.fixture
def receipts(site: AnsweredSite, tmp_path: Path) -> Path:
    """What a server keeps: this site's receipts beside another's, and the keys that it knows."""
    run = tmp_path / "run"
    for receipt in site.receipts:
        keep_receipt(run / "receipts", receipt)
    (run / "known-sites").mkdir()
    shutil.copy(site.path.parent / "keys" / PUBLIC_KEY, run / "known-sites" / "north.pub")
    other = AnsweredSite(tmp_path / "south.db")
    south = other.answer(1)
    (run / "receipts" / "south").mkdir()
    text = south.to_json().replace('"site":"north"', '"site":"south"')
    (run / "receipts" / "south" / "000001.json").write_text(text)
    return run / "receipts"


def fundusgen(*words: object, typed: str | None = None) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(word) for word in words], input=typed)


def audit(site: AnsweredSite, receipts: Path) -> Result:
    """Audit a ledger with a server's receipts; the page goes to `out` beside the run."""
    out = receipts.parent.parent / "out"
    return fundusgen("audit", "ledger", site.path, "--receipts", receipts, "--out", out)


def error_of(result: Result) -> str:
    assert isinstance(result.exception, FundusgenError), (result.exception, result.output)
    return str(result.exception)


def page(out: Path) -> str:
    """The page's text, as it is read."""
    html = (out / "audit.html").read_text()
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", html, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_an_audit_where_all_holds_exits_0_and_writes_page_and_json(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in site.path.parent.rglob("*") if path.is_file()}
    done = audit(site, receipts)
    assert done.exit_code == 0, done.output
    after = {path: path.read_bytes() for path in site.path.parent.rglob("*") if path.is_file()}
    assert after == before
    said = json.loads((tmp_path / "out" / "audit.json").read_text())
    spent = epsilon([receipt.event for receipt in site.receipts], DELTA)
    assert said["holds"] is True
    assert said["site"] == "north"
    assert said["epsilon"]["used"] == pytest.approx(spent)
    assert said["receipts"] == ROUNDS
    assert not [found for found in said["findings"] if found["fault"]]
    text = page(tmp_path / "out")
    assert "Everything that was checked holds." in text
    assert f"{spent:.3f} spent, epsilon" in text
    assert f"{9 - spent:.3f} left" in text


def test_the_page_needs_no_network_and_runs_no_script(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    audit(site, receipts)
    html = (tmp_path / "out" / "audit.html").read_text()
    assert not re.search(r"<script|<link|<img|\ssrc=|\shref=|@import|url\(", html)


def test_a_name_in_the_ledger_cannot_put_anything_into_the_page(
    site: AnsweredSite, tmp_path: Path
) -> None:
    with Ledger.open(site.path) as ledger:
        evil = "<script>alert(1)</script>"
        ledger.remark("approved", {"by": evil, "code": evil}, study_id="<b>x</b>")
        ledger.remark("repaired", {"by": evil, "reason": evil, "receipt_sequence": 4,
                                   "receipt_digest": "0" * 64})  # fmt: skip
    fundusgen("audit", "ledger", site.path, "--out", tmp_path / "out")
    html = (tmp_path / "out" / "audit.html").read_text()
    assert "<script" not in html
    assert "<b>x" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_the_page_alone_tells_what_happened_to_a_ledger_and_its_receipts(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    """A cap lowered half-way, a row edited, the last receipt deleted."""
    lowered = POLICY.model_copy(update={"max_epsilon": 5.0})
    site.policy = lowered
    with Ledger.open(site.path) as ledger:
        ledger.remark("policy", lowered.model_dump(mode="json"), policy_hash=lowered.policy_hash)
        ledger.remark("refused", {"reason": "budget-exhausted", "round": 5, "said": "too much"},
                      study_hash=digest_of("retina"))  # fmt: skip
    site.edit("UPDATE entries SET noise_multiplier = 30.0 WHERE sequence = 6")
    (receipts / "north" / "000004.json").unlink()
    done = audit(site, receipts)
    assert done.exit_code == 2
    text = page(tmp_path / "out")
    assert "2 things do not hold." in text
    assert "Entry 6 was changed after it was written: it now says noise_multiplier 30.0." in text
    assert "Expected: noise_multiplier 1.1, which its digest still proves." in text
    assert "Round 4 of study retina was released (event 11), and its receipt is not among" in text
    assert "The policy: max_epsilon: 9 became 5." in text
    assert "Refused round 5 of study retina: budget-exhausted. too much." in text
    spent = epsilon([receipt.event for receipt in site.receipts], DELTA)
    assert f"{spent:.3f} spent, epsilon" in text


def test_the_recipes_on_the_page_run_as_printed_and_find_what_is_wrong(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    audit(site, receipts)
    html = (tmp_path / "out" / "audit.html").read_text()
    total, chain, signature = (
        unescape(code) for code in re.findall(r"<pre>(.*?)</pre>", html, re.S)
    )
    here = tmp_path / "copy"
    here.mkdir()
    shutil.copy(site.path, here / "ledger.db")
    shutil.copy(receipts / "north" / "000001.json", here / "000001.json")
    shutil.copy(site.path.parent / "keys" / PUBLIC_KEY, here / "node.pub")

    def run(code: str) -> subprocess.CompletedProcess[str]:
        # Without this project, as somebody who does not have it.
        return subprocess.run(
            [sys.executable, "-I", "-c", code], cwd=here, capture_output=True, text=True
        )

    said = run(total)
    assert said.returncode == 0, said.stderr
    spent = epsilon([receipt.event for receipt in site.receipts], DELTA)
    assert float(said.stdout.split()[-1]) == pytest.approx(spent, abs=0.02)
    with Ledger.read(site.path) as ledger:
        assert run(chain).stdout == f"unbroken, ending with {ledger.verify()}\n"
    assert run(signature).stdout.startswith("signed by the site: north epsilon")
    AnsweredSite(here / "ledger.db").edit("UPDATE entries SET steps = 1 WHERE sequence = 6")
    assert "entry 6 is not as it was written" in run(chain).stderr
    receipt = json.loads((here / "000001.json").read_text())
    (here / "000001.json").write_text(json.dumps({**receipt, "epsilon_total": 0.1}))
    assert run(signature).returncode != 0


def test_a_copy_without_its_site_folder_is_audited_with_the_keys_that_the_server_knows(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    copy = site.copy_to(tmp_path / "copy")
    done = audit(copy, receipts)
    assert done.exit_code == 0, done.output
    assert "Privacy audit of north" in page(tmp_path / "out")


def test_a_ledger_that_no_receipt_knows_asks_whose_it_is(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    stranger = AnsweredSite(tmp_path / "stranger" / "ledger.db")
    stranger.path.parent.mkdir()
    stranger.answer(1)
    done = fundusgen(
        "audit", "ledger", stranger.path, "--receipts", receipts, "--out", tmp_path / "out"
    )
    assert "--site NAME" in error_of(done)
    done = fundusgen(
        "audit", "ledger", stranger.path, "--receipts", receipts, "--site", "north",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "no entry in the ledger" in page(tmp_path / "out")


@pytest.mark.parametrize("what", ["ledger", "receipts", "policy", "key", "out"])
def test_what_is_not_there_is_told_in_a_sentence(
    site: AnsweredSite, receipts: Path, tmp_path: Path, what: str
) -> None:
    nothing = tmp_path / "nothing"
    words: dict[str, object] = {
        "--receipts": receipts, "--policy": site.path.parent / "policy.yaml",
        "--key": site.path.parent / "keys" / PUBLIC_KEY, "--out": tmp_path / "out",
    }  # fmt: skip
    if what == "out":
        nothing.write_text("a file")
        words["--out"] = nothing / "below"
    elif what != "ledger":
        words[f"--{what}"] = nothing
    ledger = nothing if what == "ledger" else site.path
    done = fundusgen("audit", "ledger", ledger, *(word for pair in words.items() for word in pair))
    assert str(nothing) in error_of(done)


def test_a_ledger_that_is_no_database_still_gets_its_page(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    site.path.write_bytes(b"no database" * 1000)
    done = audit(site, receipts)
    assert done.exit_code == 2
    text = page(tmp_path / "out")
    assert "cannot be opened as a database" in text
    assert "Receipts 1 to 4" in text


def test_a_ledger_that_a_client_writes_meanwhile_is_read_again(
    site: AnsweredSite, receipts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, rounds = audit_command._evidence, iter((5, 6))

    def reading_while_a_client_answers(*arguments: object) -> object:
        evidence = read(*arguments)  # type: ignore[arg-type]
        for round_number in rounds:
            keep_receipt(receipts, site.answer(round_number))
            return read(*arguments)  # type: ignore[arg-type]
        return evidence

    monkeypatch.setattr(audit_command, "_evidence", reading_while_a_client_answers)
    done = audit(site, receipts)
    assert done.exit_code == 0, done.output
    assert "6 events" in done.output


def test_what_a_terminal_obeys_is_not_printed(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    site.edit("UPDATE entries SET study_id = char(27) || '[2J' WHERE event_id = 5")
    done = audit(site, receipts)
    assert done.exit_code == 2
    assert "\x1b[2J" not in done.output


REPAIR = ("site", "ledger", "repair")
WHY = ("--reason", "a disk failed", "--by", "M. Meier")


def test_a_whole_ledger_is_left_alone(site: AnsweredSite, receipts: Path) -> None:
    before = site.path.read_bytes()
    done = fundusgen(*REPAIR, site.path.parent, "--receipts", receipts)
    assert done.exit_code == 0, done.output
    assert "is whole. Nothing was changed" in done.output
    assert "all 4 receipts" in done.output
    assert site.path.read_bytes() == before


@pytest.mark.parametrize("typed", ["a disk failed\nn\n", "a disk failed\n\n", "a disk failed\n"])
def test_a_repair_without_a_yes_changes_nothing(site: AnsweredSite, typed: str) -> None:
    site.edit("UPDATE entries SET steps = 1 WHERE sequence = 6")
    before = site.path.read_bytes()
    done = fundusgen(*REPAIR, site.path.parent, typed=typed)
    assert done.exit_code == 1
    assert "Entry 6 was changed" in done.output
    assert site.path.read_bytes() == before
    assert not list(site.path.parent.glob("ledger-before*"))


def test_a_yes_repairs_keeps_the_old_ledger_and_is_an_entry_of_the_new_one(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    site.edit("UPDATE entries SET steps = 1 WHERE sequence = 6")
    before = site.path.read_bytes()
    done = fundusgen(*REPAIR, site.path.parent, "--by", "M. Meier", typed="a disk failed\ny\n")
    assert done.exit_code == 0, done.output
    (kept,) = site.path.parent.glob("ledger-before-repair-*")
    assert (kept / "ledger.db").read_bytes() == before
    with Ledger.open(site.path) as ledger:
        assert ledger.remarks()[-1].note["by"] == "M. Meier"
        assert ledger.remarks()[-1].note["reason"] == "a disk failed"
        assert sorted(map(str, ledger.events())) == sorted(str(r.event) for r in site.receipts)
    site.answer(5)
    keep_receipt(receipts, site.receipts[-1])
    done = audit(site, receipts)
    assert done.exit_code == 0, done.output
    assert "M. Meier repaired the ledger: a disk failed" in page(tmp_path / "out")


def test_an_old_backup_is_repaired_with_the_servers_receipts(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    backup = site.copy_to(tmp_path / "backup")
    keep_receipt(receipts, site.answer(5))
    site.restore(backup)
    done = fundusgen(*REPAIR, site.path.parent, "--receipts", receipts, *WHY, "--yes")
    assert done.exit_code == 0, done.output
    assert "does not know receipt 5" in done.output
    assert "--nothing-else-was-sent" in done.output
    with Ledger.read(site.path) as ledger:
        assert ledger.epsilon(DELTA) >= POLICY.max_epsilon
    # On second thoughts, with the old ledger back in place and a statement.
    site.restore(backup)
    done = fundusgen(
        *REPAIR, site.path.parent, "--receipts", receipts, *WHY, "--yes", "--nothing-else-was-sent"
    )
    assert done.exit_code == 0, done.output
    with Ledger.read(site.path) as ledger:
        truth = epsilon([receipt.event for receipt in site.receipts], DELTA)
        assert ledger.epsilon(DELTA) == pytest.approx(truth)


def test_forged_receipts_are_left_aside_in_a_repair(
    site: AnsweredSite, receipts: Path, tmp_path: Path
) -> None:
    stranger = AnsweredSite(tmp_path / "ledger.db", list(site.receipts))
    forged = stranger.answer(77, PLAN)
    (receipts / "north" / "000077.json").write_text(forged.to_json())
    done = fundusgen(*REPAIR, site.path.parent, "--receipts", receipts, *WHY, "--yes")
    assert done.exit_code == 0, done.output
    assert "is not signed by a key of north" in done.output
    assert "is whole. Nothing was changed" in done.output


def test_nobody_repairs_a_ledger_that_a_client_holds(
    site: AnsweredSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fundusgen.cli.ledger._LOCK_WAIT_S", 0.1)
    with Ledger.open(site.path):
        assert "another client works" in error_of(fundusgen(*REPAIR, site.path.parent, "--yes"))


def test_a_repair_without_a_reason_is_none(site: AnsweredSite) -> None:
    site.edit("UPDATE entries SET steps = 1 WHERE sequence = 6")
    assert "--reason TEXT" in error_of(fundusgen(*REPAIR, site.path.parent, "--yes"))
