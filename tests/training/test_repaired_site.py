"""No training with a damaged ledger until a person decides, and then it goes on."""

import shutil
from pathlib import Path

import pytest
from small_study import approve, phantom_site, request_for, small_study
from typer.testing import CliRunner

from fundusgen.cli.main import app
from fundusgen.federation.exchange import Answer, Refusal
from fundusgen.privacy.keys import signing_key
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_file import head_file
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipt_folder import keep_receipt
from fundusgen.privacy.receipts import Receipt, require_follows, require_signed
from fundusgen.site import SiteFolder
from fundusgen.training.answering import answer

STUDY = small_study(federation={"rounds": 5})
UNUSABLE = Refusal(RefusalReason.LEDGER_UNUSABLE)


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    site = phantom_site(tmp_path / "site", max_epsilon=30.0)
    approve(site, STUDY)
    return site


def answered(site: SiteFolder, round_number: int, shift: float = 0.0) -> Receipt:
    reply = answer(site, request_for(STUDY, round_number, shift))
    assert isinstance(reply, Answer), reply
    return reply.receipt


def repair(site: SiteFolder, *words: str) -> None:
    command = ["site", "ledger", "repair", str(site.path), "--yes", "--by", "M. Meier"]
    done = CliRunner().invoke(app, [*command, "--reason", "a test", *words])
    assert done.exit_code == 0, (done.output, done.exception)


def total(site: SiteFolder) -> float:
    with Ledger.read(site.ledger_file) as ledger:
        return ledger.epsilon(1e-5)


def test_after_a_repair_the_site_answers_on_and_its_receipts_follow(site: SiteFolder) -> None:
    last = [answered(site, number) for number in (1, 2)][-1]
    head_file(site.ledger_file).write_text("torn")
    assert answer(site, request_for(STUDY, 3)) == UNUSABLE
    repair(site, "--nothing-else-was-sent")
    assert total(site) == pytest.approx(last.epsilon_total)
    again, third = answered(site, 2), answered(site, 3)
    assert again == last
    require_signed(third, signing_key(site.keys).public_key())
    require_follows(third, last)


def test_what_may_be_lost_uses_up_the_budget_until_a_person_raises_the_cap(
    site: SiteFolder,
) -> None:
    answered(site, 1)
    head_file(site.ledger_file).unlink()
    assert answer(site, request_for(STUDY, 2)) == UNUSABLE
    repair(site)
    assert total(site) >= 30.0
    assert answer(site, request_for(STUDY, 2)) == Refusal(RefusalReason.BUDGET_EXHAUSTED)


def test_a_restored_backup_goes_on_after_a_repair_with_the_outbox_of_today(
    site: SiteFolder, tmp_path: Path
) -> None:
    answered(site, 1)
    backup = {path.name: path.read_bytes() for path in site.path.glob("ledger.db*")}
    second = answered(site, 2)
    for name, content in backup.items():
        (site.path / name).write_bytes(content)
    assert answer(site, request_for(STUDY, 3)) == UNUSABLE
    repair(site, "--nothing-else-was-sent")
    assert total(site) == pytest.approx(second.epsilon_total)
    # What was asked is not known from the receipt, so the round is neither trained nor answered.
    assert answer(site, request_for(STUDY, 2)) == Refusal(RefusalReason.ROUND_CONFLICT)
    require_follows(answered(site, 3), second)


def test_a_site_that_was_restored_as_a_whole_goes_on_with_the_servers_receipts(
    site: SiteFolder, tmp_path: Path
) -> None:
    answered(site, 1)
    shutil.copytree(site.path, tmp_path / "backup")
    second = answered(site, 2)
    restored = SiteFolder(tmp_path / "backup")
    # The same round once more, with other weights: nothing at the site knows better.
    other = answered(restored, 2, shift=0.1)
    keep_receipt(tmp_path / "receipts", second)
    repair(restored, "--receipts", str(tmp_path / "receipts"), "--nothing-else-was-sent")
    with Ledger.read(restored.ledger_file) as ledger:
        assert len(ledger.events()) == 3
        assert ledger.knows_receipt(second.digest)
        assert ledger.knows_receipt(other.digest)
    require_follows(answered(restored, 3), second)


def test_a_damaged_reply_that_nobody_knows_is_put_aside(site: SiteFolder) -> None:
    answered(site, 1)
    backup = {path.name: path.read_bytes() for path in site.path.glob("ledger.db*")}
    answered(site, 2)
    for name, content in backup.items():
        (site.path / name).write_bytes(content)
    known = {request_for(STUDY, 1).request_id}
    (lost,) = [path for path in site.outbox.iterdir() if path.name.split(".")[0] not in known]
    lost.write_bytes(lost.read_bytes()[:-1])
    assert answer(site, request_for(STUDY, 3)) == UNUSABLE
    repair(site, "--nothing-else-was-sent")
    answered(site, 3)
    (kept,) = site.path.glob("ledger-before-repair-*/outbox/*")
    assert kept.name == lost.name
