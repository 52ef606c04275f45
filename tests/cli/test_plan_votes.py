"""What a hospital is told of a study with votes, before it is asked for a yes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fundusgen.cli.main import app
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.study import Study, dump_study
from fundusgen.training.mechanisms import noise_for

VOTES = {"rounds": 2, "candidates": 40, "nearest": 3}
DPSGD = {"steps_per_round": 2, "sample_rate": 0.5}


def study(stages: dict[str, object]) -> Study:
    return Study.model_validate(
        {
            "study_id": "retina",
            "conditions": ["normal", "amd"],
            "image_size": 32,
            "model": {"width": 4, "latent": 4},
            "prior": {},
            "stages": stages,
            "privacy": {"target_epsilon": 8},
            "federation": {"rounds": 3} if stages.get("dpsgd") else {},
        }
    )


BOTH, ALONE = study({"votes": VOTES, "dpsgd": DPSGD}), study({"votes": VOTES, "dpsgd": None})


@pytest.fixture
def site(tmp_path) -> SiteFolder:
    site = SiteFolder(tmp_path / "site")
    data = SiteData(manifest=Path("manifest.csv"), root=Path(), declared_patients=300)
    site.write(
        SiteSettings(name="north", data=data, threads=1),
        Policy(max_epsilon=8.5, delta=1e-5, code="any"),
    )
    return site


def run(tmp_path, wanted: Study, *arguments: object, status: int = 0) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(dump_study(wanted))
    words = [str(file) if word is wanted else str(word) for word in arguments]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    assert done.exit_code == status, (done.output, done.exception)
    return done.stdout


def plan(tmp_path, wanted: Study, *arguments: object, status: int = 0) -> str:
    text = run(tmp_path, wanted, "plan", wanted, *arguments, status=status)
    return text if "--json" in arguments else " ".join(text.split())


def test_the_plan_of_votes_tells_what_patients_do_in_them(tmp_path) -> None:
    said = plan(tmp_path, ALONE, "--declared-patients", 300)
    assert "Each of 300 patients votes once a round for the artificial pictures" in said
    assert "among 40" in said
    assert "2 votes of" in said
    for wrong in ("parameters are trained", "steps of", "batches of", "of votes"):
        assert wrong not in said


def test_the_plan_of_both_stages_has_a_line_of_cost_and_a_verdict_for_each(tmp_path) -> None:
    said = plan(tmp_path, BOTH, "--declared-patients", 300)
    votes, dpsgd = (noise_for(BOTH, stage) for stage in ("votes", "dpsgd"))
    assert f"votes 2 2 1 {votes:.4g}" in said
    assert f"dpsgd 3 6 0.5 {dpsgd:.4g}" in said
    assert "the noise on a candidate is" in said
    assert "the noise of a step is" in said
    assert "a round of votes" in said
    assert "a round of dpsgd" in said


def test_the_plan_s_numbers_are_those_of_the_mechanisms(tmp_path) -> None:
    told = json.loads(
        plan(tmp_path, BOTH, "--declared-patients", 300, "--sites-patients", "300,600", "--json")
    )
    votes, dpsgd = told["stages"]
    assert (votes["stage"], votes["mechanism"], votes["rounds_left"], votes["steps_left"]) == (
        "votes", "gaussian", 2, 2,
    )  # fmt: skip
    first = Event("gaussian", noise_for(BOTH, "votes"), 1.0, 2)
    second = Event("subsampled_gaussian", noise_for(BOTH, "dpsgd"), 0.5, 6)
    assert votes["epsilon_after"] == votes["epsilon_alone"] == epsilon([first], 1e-5)
    assert dpsgd["epsilon_alone"] == epsilon([second], 1e-5)
    assert dpsgd["epsilon_after"] == told["epsilon_after"] == epsilon([first, second], 1e-5) <= 8
    assert votes["private_parameters"] == 0
    # 900 patients give sqrt(3) votes each, over 40 candidates, against the noise of two sites.
    expected = first.noise_multiplier * 2**0.5 / (900 * 3**0.5 / 40)
    assert votes["noise_over_signal_pooled"] == pytest.approx(expected)
    assert votes["noise_over_signal_warn_above"] == 10
    assert dpsgd["noise_over_signal_warn_above"] == 3
    assert votes["bytes_up_per_round"] < dpsgd["bytes_up_per_round"]
    assert told["bytes_up"] == 2 * votes["bytes_up_per_round"] + 3 * dpsgd["bytes_up_per_round"]


def test_votes_that_drown_in_noise_are_told_with_what_helps(tmp_path) -> None:
    said = plan(tmp_path, BOTH, "--declared-patients", 3)
    assert "above 10: little will be learned from them" in said
    assert "stages.votes.candidates" in said


@pytest.mark.parametrize("stage", ["votes", "dpsgd"])
def test_a_plan_objects_to_too_little_noise_in_either_stage(tmp_path, site, stage) -> None:
    privacy = {"target_epsilon": 8, "votes_share": {"votes": 0.9, "dpsgd": 0.25}[stage]}
    wanted = Study.model_validate({**BOTH.model_dump(mode="json"), "privacy": privacy})
    least, other = sorted(noise_for(wanted, each) for each in ("votes", "dpsgd"))
    assert least == noise_for(wanted, stage)
    site.write(
        site.settings(),
        Policy(
            max_epsilon=8.5, delta=1e-5, code="any", studies=(wanted.study_hash,),
            min_noise_multiplier=(least + other) / 2,
        ),
    )  # fmt: skip
    told = json.loads(plan(tmp_path, wanted, "--site", site.path, "--json", status=2))
    assert [objection["reason"] for objection in told["objections"]] == ["noise-too-small"]


def test_who_approves_is_told_of_the_votes_and_of_dpsgd(tmp_path, site) -> None:
    said = " ".join(
        run(
            tmp_path, BOTH,
            "site", "approve", BOTH, "--site", site.path, "--by", "M. Meier", "--yes",
        ).split()
    )  # fmt: skip
    assert "votes 2, in which your patients vote for 40 artificial pictures like theirs" in said
    assert "trained all of it, on your patients" in said
    assert "rounds 3 of 2 steps each" in said
    assert BOTH.study_hash in site.policy().studies


def test_who_approves_votes_alone_is_not_told_that_anything_is_trained(tmp_path, site) -> None:
    said = " ".join(
        run(
            tmp_path, ALONE,
            "site", "approve", ALONE, "--site", site.path, "--by", "M. Meier", "--yes",
        ).split()
    )  # fmt: skip
    assert "votes 2, in which your patients vote" in said
    assert "on your patients" not in said
    assert "steps each" not in said
