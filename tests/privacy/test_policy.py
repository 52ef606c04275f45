"""A policy allows what it says, and nothing where it says nothing."""

import json
import math
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from fundusgen.errors import AccountingError, SiteError
from fundusgen.privacy import policy as policy_module
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.policy import (
    Policy,
    RefusalReason,
    Refused,
    load_policy,
    objections,
    over_budget,
    parse_policy,
    require_allowed,
)
from fundusgen.privacy.privacy_filter import filter_epsilon
from fundusgen.study import Study

MINIMAL = "max_epsilon: 8\ndelta: 1e-5\n"
ONE, TWO = "a" * 64, "0b" * 32


def policy(text: str = "") -> Policy:
    return parse_policy(MINIMAL + text, source="policy.yaml")


def error_of(text: str) -> str:
    with pytest.raises(SiteError) as caught:
        parse_policy(text, source="policy.yaml")
    said = str(caught.value)
    assert said.startswith("The policy policy.yaml cannot be used: ")
    assert said.endswith("Correct it; until then the site refuses every study.")
    assert said.isprintable()
    return said


def study(noise: str = "secure", rounds: int = 10) -> Study:
    return Study.model_validate(
        {
            "study_id": "example",
            "conditions": ["normal"],
            "privacy": {"target_epsilon": 8, "noise": noise},
            "federation": {"rounds": rounds},
        }
    )


# -- what is absent ------------------------------------------------------------------------------


def test_what_is_absent_allows_no_study_and_no_code() -> None:
    assert policy().studies == ()
    assert policy().code == ()
    found = objections(
        policy(),
        study(),
        noise_multiplier=1e9,
        declared_patients=10**9,
        reply_bytes=1,
        code_hash=ONE,
    )
    assert [refused.reason for refused in found] == [
        RefusalReason.STUDY_NOT_APPROVED,
        RefusalReason.CODE_NOT_APPROVED,
    ]


def test_every_other_default_is_the_one_that_is_documented() -> None:
    assert policy().model_dump(mode="json", exclude={"studies", "code"}) == {
        "max_epsilon": 8.0,
        "delta": 1e-5,
        "composition": "fixed",
        "models": ["vae", "gan"],
        "max_rounds_per_study": 1000,
        "min_noise_multiplier": 0.3,
        "min_patients": 1,
        "noise": "secure",
        "release": {"max_bytes_per_round": 64 * 1024 * 1024, "metrics": []},
    }


@pytest.mark.parametrize("missing", ["max_epsilon", "delta"])
def test_a_cap_and_a_delta_have_no_default(missing: str) -> None:
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(missing)]
    assert f"'{missing}' is missing" in error_of("\n".join(lines))


# -- every setting, to its edge ------------------------------------------------------------------

TOO_SMALL = ("0", "-1", "0.0", "-0.0", "-1e-300")
NO_NUMBER = ('"8"', "true", "null", "", "[8]", "{}", "8%", "1:30", "1_000", ".nan", ".inf", "1e999")
NO_COUNT = (*NO_NUMBER, "0", "-1", "1.0", "8e0", "0x8", "010")
NO_DIGESTS = (
    "null", "", "any-study", "any", "{}", "true", f"[{ONE[:-1]}]", f"[{ONE}a]", f"[{ONE.upper()}]",
    f'["{ONE}\\n"]', f'[" {ONE}"]', f'["{ONE[:-1]}g"]', "[null]", "[8]", f"{{{ONE}: true}}", ONE,
    f"[[{ONE}]]", "['']",
    # A hash that is not in quotes and could be a number is no text, and no other hash.
    f"[{'1' * 64}]", f"[{'1' * 31}e{'1' * 32}]",
)  # fmt: skip
EDGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "max_epsilon": (("8", "8.0", "5e-324", "1e-3", "1e308"), (*TOO_SMALL, *NO_NUMBER)),
    "delta": (
        ("1e-2", "0.01", "1e-5", "1e-12"),
        (*TOO_SMALL, *NO_NUMBER, "0.010000000000000002", "1"),
    ),
    "composition": (
        ("fixed", "adaptive", "'fixed'"),
        ("Fixed", "none", "null", "", "true", "[fixed]", "'fixed '", "0"),
    ),
    "studies": (
        ("[]", f"[{ONE}]", f"[{ONE}, '{TWO}']", f"\n- {ONE}\n", f"['{'1' * 64}']"),
        NO_DIGESTS,
    ),
    "code": (
        ("[]", "any", "'any'", f"[{ONE}]", f"[{ONE}, '{TWO}']", f"['{'1' * 64}']"),
        (*(word for word in NO_DIGESTS if word != "any"), "[any]", "Any", "all", "'*'", "'any '"),
    ),
    "models": (
        ("[]", "[vae]", "[gan]", "[vae, gan]"),
        ("vae", "any", "[gna]", "[VAE]", "null", "", "[vae, vit]", "['*']", "[null]", "{vae: 1}"),
    ),
    "max_rounds_per_study": (("1", "1000000000000"), NO_COUNT),
    "min_noise_multiplier": (("5e-324", "0.3", "1", "1e308"), (*TOO_SMALL, *NO_NUMBER)),
    "min_patients": (("1", "1000000000000"), NO_COUNT),
    "noise": (
        ("secure", "fast", "'fast'"),
        ("none", "no", "Secure", "null", "", "true", "[secure]", "'secure '"),
    ),
    "release": (
        (
            "{}", "{max_bytes_per_round: 1}", "{metrics: []}",
            "{max_bytes_per_round: 1000000000000, metrics: []}",
        ),
        (
            "null", "", "[]", "8", "all", "{metrics: [loss]}", "{metrics: null}", "{metrics: all}",
            "{metrics: ['']}", "{metrics: {}}", "{losses: true}", "{max_bytes: 1}",
            *(f"{{max_bytes_per_round: {word}}}" for word in NO_COUNT),
        ),
    ),
}  # fmt: skip


def with_setting(key: str, written: str) -> str:
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(key)]
    return "\n".join([*lines, f"{key}: {written}", ""])


def test_the_edges_of_every_setting_are_tested() -> None:
    assert set(EDGES) == set(Policy.model_fields)


@pytest.mark.parametrize(
    ("key", "written"), [(key, word) for key, (taken, _) in EDGES.items() for word in taken]
)
def test_a_value_within_its_edges_is_taken_as_it_is(key: str, written: str) -> None:
    read = parse_policy(with_setting(key, written), source="policy.yaml")
    found = read.model_dump(mode="json", exclude_unset=True)[key]
    # Another reader, which takes 1e-5 for text.
    expected = yaml.safe_load(f"{key}: {written}")[key]
    assert found == (float(expected) if isinstance(found, float) else expected)
    assert read.model_fields_set == {"max_epsilon", "delta", key}


@pytest.mark.parametrize(
    ("key", "written"), [(key, word) for key, (_, refused) in EDGES.items() for word in refused]
)
def test_a_value_beyond_its_edges_is_an_error_that_names_its_key(key: str, written: str) -> None:
    assert f"'{key}" in error_of(with_setting(key, written))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("max_epsilom", "max_epsilon"), ("study", "studies"), ("min_patient", "min_patients")],
)
def test_a_key_that_is_not_known_is_an_error_that_names_the_nearest(key: str, nearest: str) -> None:
    assert f"unknown key '{key}', did you mean '{nearest}'?" in error_of(f"{MINIMAL}{key}: 1\n")
    assert "did you mean 'metrics'" in error_of(f"{MINIMAL}release: {{metric: []}}\n")


@pytest.mark.parametrize("text", ["", "- a", "word", "{", "\x00", "a: 1\na: 2", MINIMAL + MINIMAL])
def test_what_is_no_policy_is_an_error(text: str) -> None:
    error_of(text)


def test_a_policy_cannot_be_changed_once_it_is_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        policy().max_epsilon = 80.0


# -- its file ------------------------------------------------------------------------------------


def test_a_policy_that_is_not_there_or_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(MINIMAL.encode() + b"# M\xfcnster\n")
    for name in ("none.yaml", "folder.yaml", "latin.yaml"):
        with pytest.raises(SiteError, match="cannot be used"):
            load_policy(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["\ufeff" + MINIMAL, MINIMAL.replace("\n", "\r\n"), f"\n{MINIMAL}\n"]
)
def test_a_policy_is_the_same_from_any_editor(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text.encode())
    assert load_policy(path) == policy()


# -- its hash ------------------------------------------------------------------------------------

CHANGES = [
    "max_epsilon: 8.000000000000002", "delta: 1.0000000000000002e-5", "composition: adaptive",
    f"studies: [{ONE}]", f"studies: [{TWO}]", f"studies: [{ONE}, {TWO}]", "code: any",
    f"code: [{ONE}]", f"code: [{ONE}, {TWO}]", "models: []", "max_rounds_per_study: 1001",
    "min_noise_multiplier: 0.30000000000000004", "min_patients: 2", "noise: fast",
    "release: {max_bytes_per_round: 67108865}",
]  # fmt: skip


def test_the_hash_changes_with_every_setting() -> None:
    texts = [with_setting(*change.split(": ", 1)) for change in CHANGES]
    assert {change.split(":")[0] for change in CHANGES} == set(Policy.model_fields)
    hashes = [parse_policy(text, source="changed").policy_hash for text in texts]
    assert len({*hashes, policy().policy_hash}) == len(CHANGES) + 1


SPELLED = f"""
max_epsilon: 8
delta: 1e-5
studies: [{ONE}, {TWO}]
noise: secure
min_patients: 1
"""


@pytest.mark.parametrize(
    "text",
    [
        f"# why\nmax_epsilon: 8  # cap\ndelta: 1e-5\n\nstudies:\n# one\n- {ONE}  # Ann\n- {TWO}\n",
        f"noise: secure\nstudies:\n  - '{ONE}'\n  - \"{TWO}\"\ndelta: 0.00001\nmax_epsilon: 8.0\n",
        f"{{max_epsilon: 0.8e1, delta: 1.0e-05, studies: [{ONE}, {TWO}]}}",
        json.dumps({"studies": [ONE, TWO], "delta": 1e-5, "max_epsilon": 8}),
        f"---\r\ndelta: 1E-5\r\nmax_epsilon: +8\r\nstudies: [{ONE}, {TWO}]\r\n...\r\n",
        f"max_epsilon: &cap 8\nmin_noise_multiplier: 0.3\ndelta: 1e-5\nstudies: [{ONE}, {TWO}]\n",
    ],
)
def test_the_hash_does_not_change_with_comments_order_or_spelling(text: str) -> None:
    expected = parse_policy(SPELLED, source="one").policy_hash
    assert parse_policy(text, source="other").policy_hash == expected


def test_the_form_that_the_ledger_keeps_is_the_same_policy() -> None:
    for change in ("", *CHANGES[2:]):
        read = policy(change)
        assert parse_policy(read.to_json(), source="ledger") == read
        assert set(json.loads(read.to_json())) == set(Policy.model_fields)


# -- objections ----------------------------------------------------------------------------------

ALLOWED = Policy(
    max_epsilon=8.0,
    delta=1e-5,
    studies=(study().study_hash,),
    code=(ONE,),
    max_rounds_per_study=10,
    min_noise_multiplier=0.75,
    min_patients=50,
    release=policy_module.Release(max_bytes_per_round=1000),
)
# Everything at its edge: nothing more, and nothing less, would be allowed.
AT_THE_EDGE: dict[str, Any] = {
    "noise_multiplier": 0.75,
    "declared_patients": 50,
    "reply_bytes": 1000,
    "code_hash": ONE,
}
# What is wrong, in the order in which it is said; each changes the policy or what is asked.
WRONG: list[tuple[RefusalReason, dict[str, Any], dict[str, Any]]] = [
    (RefusalReason.STUDY_NOT_APPROVED, {"studies": (ONE, TWO)}, {}),
    (RefusalReason.CODE_NOT_APPROVED, {"code": (TWO,)}, {}),
    (RefusalReason.MODEL_NOT_ALLOWED, {"models": ()}, {}),
    (RefusalReason.TOO_MANY_ROUNDS, {"max_rounds_per_study": 9}, {}),
    (RefusalReason.NOISE_TOO_SMALL, {}, {"noise_multiplier": math.nextafter(0.75, 0)}),
    (RefusalReason.TOO_FEW_PATIENTS, {}, {"declared_patients": 49}),
    (RefusalReason.REPLY_TOO_LARGE, {}, {"reply_bytes": 1001}),
]


def objected(allowed: Policy, asked: Study, **changes: Any) -> list[RefusalReason]:
    found = objections(allowed, asked, **{**AT_THE_EDGE, **changes})
    return [refused.reason for refused in found]


def test_what_is_at_every_edge_is_allowed() -> None:
    assert objected(ALLOWED, study()) == []
    require_allowed(ALLOWED, study(), **AT_THE_EDGE)


@pytest.mark.parametrize(
    ("reason", "changes", "asked"),
    [
        *WRONG,
        (RefusalReason.STUDY_NOT_APPROVED, {"studies": ()}, {}),
        (RefusalReason.STUDY_NOT_APPROVED, {"studies": (study(rounds=9).study_hash,)}, {}),
        (RefusalReason.CODE_NOT_APPROVED, {"code": ()}, {}),
        (RefusalReason.CODE_NOT_APPROVED, {}, {"code_hash": TWO}),
        (RefusalReason.CODE_NOT_APPROVED, {}, {"code_hash": ""}),
        (RefusalReason.CODE_NOT_APPROVED, {}, {"code_hash": "any"}),
        (RefusalReason.NOISE_TOO_SMALL, {}, {"noise_multiplier": math.nan}),
        (RefusalReason.NOISE_TOO_SMALL, {}, {"noise_multiplier": -math.inf}),
        (RefusalReason.NOISE_TOO_SMALL, {"min_noise_multiplier": math.nextafter(0.75, 1)}, {}),
        (RefusalReason.TOO_FEW_PATIENTS, {"min_patients": 51}, {}),
        (RefusalReason.TOO_FEW_PATIENTS, {}, {"declared_patients": 0}),
        (
            RefusalReason.REPLY_TOO_LARGE,
            {"release": policy_module.Release(max_bytes_per_round=999)},
            {},
        ),
    ],
)
def test_each_thing_that_is_not_allowed_is_an_objection_of_its_own(
    reason: RefusalReason, changes: dict[str, Any], asked: dict[str, Any]
) -> None:
    allowed = ALLOWED.model_copy(update=changes)
    assert objected(allowed, study(), **asked) == [reason]
    (refused,) = objections(allowed, study(), **{**AT_THE_EDGE, **asked})
    assert refused.found
    assert refused.expected
    with pytest.raises(Refused) as caught:
        require_allowed(allowed, study(), **{**AT_THE_EDGE, **asked})
    assert caught.value.reason is reason


def test_code_any_allows_any_code_and_nothing_else() -> None:
    any_code = ALLOWED.model_copy(update={"code": "any"})
    assert objected(any_code, study(), code_hash=TWO) == []
    for reason, changes, asked in WRONG:
        allowed = any_code.model_copy(update={k: v for k, v in changes.items() if k != "code"})
        expected = [] if reason is RefusalReason.CODE_NOT_APPROVED else [reason]
        assert objected(allowed, study(), **asked) == expected


def test_fast_noise_is_allowed_only_where_the_policy_says_so() -> None:
    fast = study(noise="fast")
    approved = ALLOWED.model_copy(update={"studies": (study().study_hash, fast.study_hash)})
    assert objected(approved, fast) == [RefusalReason.NOISE_NOT_SECURE]
    lenient = approved.model_copy(update={"noise": "fast"})
    assert objected(lenient, fast) == []
    assert objected(lenient, study()) == []


def test_any_set_of_faults_is_said_in_one_order_and_the_first_one_leaves() -> None:
    order = [reason for reason, _, _ in WRONG]
    order.insert(order.index(RefusalReason.TOO_FEW_PATIENTS), RefusalReason.NOISE_NOT_SECURE)
    for count in range(len(WRONG) + 1):
        for chosen in combinations(WRONG, count):
            for noise in ("secure", "fast"):
                asked_study = study(noise=noise)
                allowed = ALLOWED.model_copy(update={"studies": (asked_study.study_hash,)})
                asked = dict(AT_THE_EDGE)
                for _, changes, more in chosen:
                    allowed, asked = allowed.model_copy(update=changes), {**asked, **more}
                reasons = {reason for reason, _, _ in chosen}
                if noise == "fast":
                    reasons.add(RefusalReason.NOISE_NOT_SECURE)
                expected = [reason for reason in order if reason in reasons]
                assert objected(allowed, asked_study, **asked) == expected
                if expected:
                    with pytest.raises(Refused) as caught:
                        require_allowed(allowed, asked_study, **asked)
                    assert caught.value.reason is expected[0]
                else:
                    require_allowed(allowed, asked_study, **asked)


def test_a_refusal_keeps_its_word_and_its_sentences_across_processes() -> None:
    refused = Refused(RefusalReason.TOO_FEW_PATIENTS, "found", expected="more", remedy="Wait")
    again = pickle.loads(pickle.dumps(refused))  # noqa: S301 - our own
    assert isinstance(again, Refused)
    assert (again.reason, str(again)) == (refused.reason, "found. Expected: more. Wait.")


# -- the cap -------------------------------------------------------------------------------------


def sgd(steps: int = 12, noise_multiplier: float = 1.1) -> Event:
    return Event("subsampled_gaussian", noise_multiplier, 0.25, steps)


HISTORIES = [
    ([], sgd()),
    ([sgd()], sgd()),
    ([sgd(), sgd(40, 2.0)], Event("gaussian", 6.0, 1.0, 2)),
    ([Event("gaussian", 4.0, 1.0, 1)] * 5, sgd(1)),
]


def cap_used_up(composition: str, events: list[Event], delta: float) -> float:
    """The cap that these events use up to the last bit, by this rule."""
    if composition == "fixed":
        return epsilon(events, delta)
    # The filter's order follows from the cap: take its own value for the cap until both agree.
    cap = epsilon(events, delta)
    for _ in range(100):
        total = filter_epsilon(events, max_epsilon=cap, delta=delta)
        if total == cap:
            return cap
        cap = total
    pytest.fail("no cap is used up to the last bit")


@pytest.mark.parametrize("delta", [1e-5, 1e-7])
@pytest.mark.parametrize(("spent", "planned"), HISTORIES)
@pytest.mark.parametrize("composition", ["fixed", "adaptive"])
def test_a_cap_may_be_used_up_to_the_last_bit_and_no_further(
    composition: str, spent: list[Event], planned: Event, delta: float
) -> None:
    cap = cap_used_up(composition, [*spent, planned], delta)

    def with_cap(max_epsilon: float) -> Policy:
        return Policy.model_validate(
            {"max_epsilon": max_epsilon, "delta": delta, "composition": composition}
        )

    assert over_budget(with_cap(cap), spent, planned) is None
    assert over_budget(with_cap(math.nextafter(cap, math.inf)), spent, planned) is None
    refused = over_budget(with_cap(math.nextafter(cap, 0)), spent, planned)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusalReason.BUDGET_EXHAUSTED
    assert f"{cap:.3f}" in str(refused)
    assert f"{delta:g}" in str(refused)


@pytest.mark.parametrize("composition", ["fixed", "adaptive"])
def test_everything_that_was_spent_counts_and_not_only_what_is_planned(composition: str) -> None:
    cap = cap_used_up(composition, [sgd()] * 3, 1e-5)
    allowed = Policy.model_validate({"max_epsilon": cap, "delta": 1e-5, "composition": composition})
    assert over_budget(allowed, [], sgd()) is None
    assert over_budget(allowed, (sgd() for _ in range(2)), sgd()) is None
    assert over_budget(allowed, (sgd() for _ in range(3)), sgd()) is not None


@pytest.mark.parametrize("composition", ["fixed", "adaptive"])
def test_nothing_costs_nothing(composition: str) -> None:
    allowed = policy(f"composition: {composition}\n")
    assert allowed.total_epsilon([]) == 0.0
    assert allowed.total_epsilon(iter([sgd(0)])) == 0.0
    assert over_budget(allowed.model_copy(update={"max_epsilon": 5e-324}), [], sgd(0)) is None


@pytest.mark.parametrize(
    ("composition", "function"), [("fixed", "epsilon"), ("adaptive", "filter_epsilon")]
)
def test_a_total_that_cannot_be_computed_is_not_a_yes(
    composition: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> float:
        raise AccountingError("no sound total")

    module = "policy" if composition == "fixed" else "privacy_filter"
    monkeypatch.setattr(f"fundusgen.privacy.{module}.{function}", fails)
    with pytest.raises(AccountingError):
        over_budget(policy(f"composition: {composition}\n"), [], sgd())


@pytest.mark.parametrize("total", [math.nan, math.inf])
def test_a_total_that_is_no_number_is_not_a_yes(
    total: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "epsilon", lambda *_: total)
    assert over_budget(policy(), [], sgd()) is not None


def test_the_smallest_delta_that_a_policy_may_have_can_be_counted_at() -> None:
    smallest = parse_policy("max_epsilon: 1e-3\ndelta: 1e-12\n", source="policy.yaml")
    assert over_budget(smallest, [], sgd()) is not None
