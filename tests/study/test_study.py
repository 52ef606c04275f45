from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundusgen.errors import StudyError
from fundusgen.study import Study, dump_study, load_study, parse_study

MINIMAL = """
study_id: example
conditions: [normal, dr1]
privacy: {target_epsilon: 8}
federation: {rounds: 3}
"""


def study(extra: str = "") -> Study:
    return parse_study(MINIMAL + extra, source="example.yaml")


def error_of(text: str) -> str:
    with pytest.raises(StudyError) as caught:
        parse_study(text, source="example.yaml")
    return str(caught.value)


def test_a_mistyped_key_is_an_error_that_names_the_nearest_key() -> None:
    message = error_of(MINIMAL.replace("target_epsilon", "target_epsilom"))
    assert "'privacy.target_epsilom'" in message
    assert "did you mean 'target_epsilon'" in message


def test_a_mistyped_key_deep_inside_a_list_names_the_nearest_key_there() -> None:
    message = error_of(
        MINIMAL + "simulation: {phantom_sites: [{name: a, patient: 3, camera: x, mix: {}}]}"
    )
    assert "did you mean 'patients'" in message


def test_a_key_given_twice_is_an_error_and_not_the_last_one() -> None:
    assert "given twice" in error_of(MINIMAL + "study_id: other\n")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("target_epsilon: 8", "target_epsilon: 0", "target_epsilon"),
        ("target_epsilon: 8", "target_epsilon: .inf", "target_epsilon"),
        ("target_epsilon: 8", "target_epsilon: .nan", "target_epsilon"),
        ("target_epsilon: 8", "target_epsilon: 8, target_delta: 1", "target_delta"),
        ("target_epsilon: 8", "target_epsilon: 8, unit: image", "unit"),
        ("rounds: 3", "rounds: 0", "rounds"),
        ("rounds: 3", "rounds: 3, quorum: 5, min_sites: 2", "quorum"),
        ("[normal, dr1]", "[normal, dr9]", "conditions"),
        ("[normal, dr1]", "[normal, normal]", "twice"),
        ("[normal, dr1]", "[]", "conditions"),
        ("study_id: example", "study_id: ../../etc", "study_id"),
        ("study_id: example", "seed: 1", "study_id"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(old: str, new: str, word: str) -> None:
    assert word in error_of(MINIMAL.replace(old, new))


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "just words", "\t", "!!python/none x"])
def test_text_that_is_no_study_is_an_error(text: str) -> None:
    assert "example.yaml" in error_of(text)


@given(st.text(max_size=200))
def test_any_text_is_a_study_or_a_study_error(text: str) -> None:
    with suppress(StudyError):
        assert isinstance(parse_study(text, source="fuzz"), Study)


@given(position=st.integers(0, len(MINIMAL) - 1), letter=st.characters())
def test_a_changed_letter_gives_a_study_or_a_study_error(position: int, letter: str) -> None:
    with suppress(StudyError):
        changed = MINIMAL[:position] + letter + MINIMAL[position + 1 :]
        assert isinstance(parse_study(changed, source="fuzz"), Study)


def test_a_file_that_is_not_there_is_a_study_error(tmp_path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")


def test_what_is_dumped_is_read_back_equal() -> None:
    assert parse_study(dump_study(study()), source="again") == study()


def test_what_the_sites_agree_to_is_read_back_with_the_same_hash() -> None:
    assert parse_study(study().agreed_json(), source="again").study_hash == study().study_hash


def test_the_hash_changes_with_privacy_and_not_with_the_simulation() -> None:
    other = study().model_copy(
        update={"privacy": study().privacy.model_copy(update={"target_epsilon": 9.0})}
    )
    assert other.study_hash != study().study_hash
    assert study("simulation: {max_epsilon: 3}\n").study_hash == study().study_hash


def test_the_model_may_be_given_by_its_name() -> None:
    assert study("model: vae\n") == study()


@pytest.mark.parametrize("name", ["demo", "real"])
def test_the_studies_that_come_with_the_project_are_valid(name: str) -> None:
    folder = Path(__file__).parents[2] / "simulations" / "studies"
    assert load_study(folder / f"{name}.yaml").study_id == name


@pytest.mark.parametrize(
    "change",
    [
        "stages: {dpsgd: {sample_rate: 5.0e-324}}",
        "stages: {dpsgd: {max_grad_norm: 1.0e+9}}",
        "stages: {dpsgd: {learning_rate: 1.0e+9}}",
    ],
)
def test_a_setting_that_would_keep_a_site_busy_or_break_its_numbers_is_refused(change: str) -> None:
    assert "dpsgd" in error_of(MINIMAL + change)


def test_more_steps_than_a_site_accounts_for_are_refused() -> None:
    text = MINIMAL.replace("rounds: 3", "rounds: 100000")
    assert "1,000,000" in error_of(text + "stages: {dpsgd: {steps_per_round: 100}}")


@pytest.mark.parametrize("pattern", ['"\\e[2J*"', '"a b"', "''", '"' + "x" * 129 + '"'])
def test_a_pattern_that_could_rewrite_what_a_person_is_shown_is_refused(pattern: str) -> None:
    assert "private" in error_of(f"{MINIMAL}model: {{private: [{pattern}]}}\n")


VOTES = "prior: {}\nstages: {votes: {rounds: 2, candidates: 10}, dpsgd: null}\n"
WITHOUT_ROUNDS = MINIMAL.replace("federation: {rounds: 3}", "federation: {}")


def test_votes_come_before_dpsgd_and_rounds_are_counted_through() -> None:
    both = study("prior: {}\nstages: {votes: {rounds: 2}}\n")
    assert both.stage_rounds == {"votes": range(1, 3), "dpsgd": range(3, 6)}
    assert [both.stage_of(number) for number in range(7)] == [
        None, "votes", "votes", "dpsgd", "dpsgd", "dpsgd", None,
    ]  # fmt: skip
    assert (both.votes_rounds, both.total_rounds, both.dpsgd_steps) == (2, 5, 12)


@pytest.mark.parametrize("federation", ["federation: {}", "federation: {rounds: 0}"])
def test_votes_alone_are_a_study_without_rounds_of_dpsgd(federation: str) -> None:
    text = MINIMAL.replace("federation: {rounds: 3}", federation)
    alone = parse_study(text + VOTES, source="example.yaml")
    assert alone.stage_rounds == {"votes": range(1, 3)}
    assert (alone.total_rounds, alone.dpsgd_steps) == (2, 0)
    assert parse_study(dump_study(alone), source="again") == alone
    with pytest.raises(StudyError, match="no stage 'dpsgd'"):
        _ = alone.dpsgd


def test_dpsgd_alone_is_a_study_without_votes() -> None:
    assert study().stage_rounds == {"dpsgd": range(1, 4)}
    assert study().votes_rounds == 0
    with pytest.raises(StudyError, match="no stage 'votes'"):
        _ = study().votes


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            WITHOUT_ROUNDS + VOTES.replace("prior: {}\n", ""),
            "prior is missing: the votes choose among the phantoms that it learns from",
        ),
        (
            WITHOUT_ROUNDS + "stages: {votes: null, dpsgd: null}\n",
            "votes and dpsgd are both null: nothing would be learned from sites",
        ),
        (
            MINIMAL + VOTES,
            "federation.rounds is 3, and stages.dpsgd is null",
        ),
        (
            WITHOUT_ROUNDS,
            "federation.rounds is missing: how many rounds of DP-SGD there are",
        ),
        (
            WITHOUT_ROUNDS + VOTES.replace("candidates: 10", "candidates: 3"),
            "stages.votes.candidates is 3, for 2 conditions: a vote needs at least two",
        ),
        (
            WITHOUT_ROUNDS + VOTES.replace("candidates", "candidate"),
            "did you mean 'candidates'?",
        ),
        (WITHOUT_ROUNDS + VOTES.replace("rounds: 2", "rounds: 0"), "votes.rounds"),
        (WITHOUT_ROUNDS + VOTES.replace("rounds: 2", "variation: 1.5"), "votes.variation"),
        (WITHOUT_ROUNDS + VOTES.replace("rounds: 2", "nearest: 0"), "votes.nearest"),
    ],
)
def test_votes_that_cannot_be_held_are_told_in_a_sentence(text: str, sentence: str) -> None:
    message = error_of(text)
    assert sentence in message
    assert message.startswith("example.yaml: ")


@pytest.mark.parametrize("share", ["0", "1", "-0.5", ".nan", "1.5"])
def test_the_votes_have_a_share_of_the_budget_and_never_all_or_nothing(share: str) -> None:
    text = MINIMAL.replace("target_epsilon: 8", f"target_epsilon: 8, votes_share: {share}")
    assert "votes_share" in error_of(text)


def test_what_decides_a_vote_is_part_of_what_the_sites_agree_to() -> None:
    base = "prior: {}\nstages: {votes: {rounds: 2, candidates: 10, nearest: 4}}\n"
    changes = [
        base.replace("rounds: 2", "rounds: 3"),
        base.replace("candidates: 10", "candidates: 11"),
        base.replace("nearest: 4", "nearest: 5"),
    ]
    hashes = {study(text).study_hash for text in [base, *changes]}
    share = MINIMAL.replace("target_epsilon: 8", "target_epsilon: 8, votes_share: 0.25")
    hashes.add(parse_study(share + base, source="example.yaml").study_hash)
    assert len(hashes) == 5
