"""Declared searches: their members, stages, choices and mistakes."""

import hashlib
import json
import re

import pytest
from search_sweeps import SEARCH, STAGES, parse, validation, write_results
from sweep_jobs import carft

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import launch, printing, search, states


def get_rate(job):
    return json.loads(job.args.get("hparams", "{}")).get("lr")


def test_searched_values_have_folders_and_upstreams_identities(tmp_path):
    jobs = parse(SEARCH).jobs("D", tmp_path)
    assert len(jobs) == 2 * 4 * (3 + 3 + 1)
    assert {job.variant for job in jobs} == {"", "lr=1e-05", "lr=0.0001", "lr=0.001"}

    for job in jobs:
        digest = hashlib.md5(json.dumps(job.args, sort_keys=True).encode()).hexdigest()
        assert job.folder == tmp_path / job.variant / digest
        assert (get_rate(job) is None) == (job.args["algorithm"] == "CLIPZeroShot")


def test_override_replaces_and_adds_searched_values():
    override = "search: {values: {lr: [1e-2, 1e-1], kl_weight: [1, 3]}}"
    declaration = parse(SEARCH + f"  - algorithms: [CARFT]\n    {override}\n")
    cells = {cell.algorithm: cell for cell in declaration.cells()}
    assert cells["CARFT"].members == [
        {"lr": lr, "kl_weight": kl_weight} for lr in (1e-2, 1e-1) for kl_weight in (1, 3)
    ]
    assert cells["CLIPFineTune"].searched == {"lr": [1e-5, 1e-4, 1e-3]}
    assert cells["CLIPZeroShot"].searched == {}


def test_hyperparameter_without_an_effect_on_a_method_is_not_searched(tmp_path):
    disabled = parse(STAGES).jobs("D", tmp_path, chosen=())
    plain = parse(STAGES.split("overrides:")[0])
    assert plain.jobs("D", tmp_path, chosen=()) == disabled
    assert {job.args["algorithm"] for job in plain.jobs("D", tmp_path)} == {"CARFT", "CLIPFineTune"}

    both = parse(SEARCH.replace("{lr:", "{kl_weight: [1, 3], lr:"))
    cells = {cell.algorithm: [*cell.searched] for cell in both.cells()}
    assert cells == {"CARFT": ["kl_weight", "lr"], "CLIPFineTune": ["lr"], "CLIPZeroShot": []}


@pytest.mark.parametrize("by_target", [False, True])
def test_second_stage_trains_the_member_with_the_highest_mean_validation(by_target, tmp_path):
    choose_by = "\n  choose_by: target" if by_target else ""
    declaration = parse(STAGES.replace("n: 1}}", "n: 1}}" + choose_by))
    first = declaration.jobs("D", tmp_path)
    assert len(first) == 2 * 4 * 3 and {job.args["trial_seed"] for job in first} == {5}
    for job in first:
        write_results(job)

    _, second_stage, _ = search.make_jobs(declaration, "D", tmp_path)

    for second in second_stage:
        key = second.args
        rivals = [
            job
            for job in first
            if job.args["algorithm"] == key["algorithm"]
            and (not by_target or job.args["test_envs"] == key["test_envs"])
        ]
        means = {}
        for job in rivals:
            means.setdefault(get_rate(job), []).append(validation(job))
        best = max(reversed(means), key=lambda value: sum(means[value])) if means else None
        assert get_rate(second) == best and key["trial_seed"] in (0, 1)
    assert len(second_stage) == 2 * 4 * 3


@pytest.mark.parametrize(
    ("last_accuracy", "best"), [(0.5, 1e-3), (0.45, 1e-4), (float("nan"), 1e-4)]
)
def test_search_chooses_the_last_of_equally_good_members(tmp_path, last_accuracy, best):
    declaration = parse(STAGES)
    for job in declaration.jobs("D", tmp_path):
        accuracy = last_accuracy if get_rate(job) == 1e-3 else 0.5
        write_results(job, accuracies=lambda step, accuracy=accuracy: [accuracy] * 8)
    chosen = search.make_jobs(declaration, "D", tmp_path)[-1].chosen
    assert [choice.values for choice in chosen] == [{"lr": best}] * 2
    assert {choice.members for choice in chosen} == {3}


def test_search_without_validation_accuracies_fails(tmp_path):
    declaration = parse(STAGES)
    for job in declaration.jobs("D", tmp_path):
        write_results(job, accuracies=lambda step: [float("nan")] * 8)
    with pytest.raises(CarftError, match="CARFT on PACS.*search other values"):
        search.make_jobs(declaration, "D", tmp_path)


def test_search_fails_if_all_records_of_an_algorithm_are_missing(tmp_path):
    declaration = parse(STAGES)
    for job in declaration.jobs("D", tmp_path):
        write_results(job)
        if job.args["algorithm"] == "CARFT":
            (job.folder / "results.jsonl").unlink()
    with pytest.raises(CarftError, match="no member of the search .* runs: CARFT on PACS"):
        search.make_jobs(declaration, "D", tmp_path)


def run_launch(out, max_finished=1000):
    """Run launches that finish a limited number of jobs.

    Returns the number of jobs of each launch, and of jobs that are not done at the end.
    """
    counts = []

    def finish(jobs):
        counts.append(len(jobs))
        for job in jobs[:max_finished]:
            write_results(job)

    unfinished = launch.run_plan(launch.plan(parse(STAGES), "D", out, finish))
    return counts, len(unfinished)


def finish_jobs(jobs):
    for job in jobs:
        write_results(job)


def status_text(out):
    return "\n".join(printing.search_lines(states.read_state(out)))


def test_dry_run_counts_the_jobs_of_both_stages(tmp_path):
    (tmp_path / "x.yaml").write_text(STAGES)
    words = [tmp_path / "x.yaml", "--data_dir", "D", "--output_dir", tmp_path / "out"]
    out = carft("launch", *words, "--dry-run").stdout
    assert out.startswith("x: 48 jobs in two stages.\nFirst stage, trial 5: 24 jobs: 24 not launc")
    assert re.search(rf"^all +48 +0 +{48 * 201:,} ", out, re.MULTILINE)


def test_second_stage_follows_the_first_and_keeps_its_choice_on_resume(tmp_path):
    assert run_launch(tmp_path, max_finished=10) == ([24], 24 - 10)  # no second stage
    text = status_text(tmp_path)
    assert "First stage, trial 5: 24 jobs: 10 done, 14 not launched." in text
    assert "Second stage, trials 0, 1: 24 jobs when the first is done." in text

    assert run_launch(tmp_path, max_finished=16) == ([14, 24], 8)
    text = status_text(tmp_path)
    assert "First stage, trial 5: 24 jobs: 24 done." in text
    assert "Second stage, trials 0, 1: 24 jobs: 16 done, 8 not launched." in text
    chosen = manifest.read(tmp_path).search.chosen
    assert len(chosen) == 2

    assert run_launch(tmp_path) == ([8], 0)
    assert manifest.read(tmp_path).search.chosen == chosen
    text = status_text(tmp_path)
    assert "Second stage, trials 0, 1: 24 jobs: 24 done." in text
    assert f"CARFT: lr={chosen[0].values['lr']} of 3" in text


def test_status_requests_a_launch_if_the_second_stage_does_not_start(tmp_path):
    plan = launch.plan(parse(STAGES), "D", tmp_path, "pool")
    launch.write_manifest(plan.declaration, tmp_path, plan.jobs, search=plan.state.search)
    assert [job.role for job in manifest.read(tmp_path).jobs] == [job.role for job in plan.jobs]
    assert not states.read_state(tmp_path).as_dict()["search"]["needs_launch"]

    for job in plan.jobs:
        write_results(job)
    assert "To launch the second, launch the sweep again." in status_text(tmp_path)
    assert states.read_state(tmp_path).as_dict()["search"]["needs_launch"]


def test_launch_is_requested_after_the_first_stage_of_an_added_method(tmp_path):
    added = parse(STAGES)
    earlier = parse(STAGES.replace("CARFT, CLIPFineTune", "CARFT"))
    launch.run_plan(launch.plan(earlier, "D", tmp_path, finish_jobs))

    plan = launch.plan(added, "D", tmp_path, "pool")
    assert len(plan.jobs_to_run) == 4 * 3 and len(plan.waiting_jobs) == 24
    launch.write_manifest(added, tmp_path, plan.jobs, search=plan.state.search)
    text = status_text(tmp_path)
    assert "24 jobs: 12 done, 12 not launched" in text
    assert "Second stage, trials 0, 1: 24 jobs when the first is done." in text
    assert "chosen: PACS CARFT: lr=" in text

    for job in plan.jobs_to_run:
        write_results(job)
    assert "To launch the second, launch the sweep again." in status_text(tmp_path)
    plan = launch.plan(added, "D", tmp_path, "pool")
    assert len(plan.jobs_to_run) == 8 and not plan.waiting_jobs


MINIMAL_DECLARATION = "name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\n"
VALUES = "values: {lr: [1e-5, 1e-4]}"
ON_FIVE = "choose_on: {trials: {from: 5, n: 1}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"search: {{{VALUES}, choose_on: {{trials: 2}}}}",
            "on trials on which it also repeats its choice: 0, 1; .*from: 3",
        ),
        (
            f"search: {{{VALUES}, {ON_FIVE}, repeat_on: {{trials: {{from: 4, n: 3}}}}}}",
            "repeats its choice: 5; ",
        ),
        (
            f"trials: 2\nsearch: {{{VALUES}, {ON_FIVE}, repeat_on: {{trials: 3}}}}",
            "both set the trials",
        ),
        (
            f"selection: [training-domain, clipood]\nsearch: {{{VALUES}}}",
            "clipood selects from a single choice of hyperparameters, but each trial has up to",
        ),
        (f"search: {{{VALUES}, repeat_on: {{trials: 3}}}}", "repeat_on needs choose_on"),
        (f"search: {{{VALUES}, choose_by: target}}", "choose_by needs choose_on"),
        (
            f"selection: [oracle]\nsearch: {{{VALUES}, {ON_FIVE}}}",
            "cannot choose by oracle, .*training-domain",
        ),
        (f"search: {{{VALUES}, draws: 3, {ON_FIVE}}}", "draws differ from trial to trial"),
        ("search: {}", "nothing to choose from; list at least two"),
        ("search: {values: {lr: [1e-4]}}", "nothing to choose from"),
        ("hparams_seeds: 3\nsearch: {draws: 3}", "draws and hparams_seeds both"),
        (
            "search: {values: {lr: [1e-5, -1]}}",
            r"4: search.values.lr\[1\]: got -1, expected a number > 0",
        ),
        (
            "search: {values: {learning: [1, 2]}}",
            r"search.values.learning: no hyperparameter of CARFT",
        ),
        (
            f"grid: {{lr: [1, 2]}}\nsearch: {{{VALUES}}}",
            "lr is in grid and in search: .*remove it from one",
        ),
        (
            f"hparams: {{lr: 1}}\nsearch: {{{VALUES}}}",
            "lr of CARFT on PACS is searched and also set to 1",
        ),
        ("search: {valeus: {lr: [1, 2]}}", "no key is called 'valeus'; did you mean values"),
        (
            f"search: {{{VALUES}, choose_on: {{trails: 1}}}}",
            "no key is called 'trails'; did you mean trials",
        ),
        (
            "test_environments: [[A, C], [A, X]]",
            r"test_environments\[1\]\[1\]: no environment of PACS is called 'X'",
        ),
        ("test_environments: [[0, 1, 2, 3]]", "all 4 environments of PACS are held out; keep"),
        (
            "test_environments: single-source\nselection: [leave-one-domain-out]",
            "selects for a single target",
        ),
    ],
)
def test_error_of_a_search_is_one_problem_with_its_place(text, message):
    with pytest.raises(CarftError) as raised:
        parse(MINIMAL_DECLARATION + text)
    matching = [problem for problem in raised.value.problems if re.search(message, problem)]
    assert len(matching) == 1, raised.value.problems
    assert matching[0].startswith("x.yaml:")


@pytest.mark.parametrize(
    ("environments", "test_envs", "joint_targets"),
    [
        ("single-source", [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]], [True] * 4),
        ("{PACS: [[S, C], [0, 2], [1]]}", [[0, 2], [1], [1, 3]], [True, False, True]),
    ],
)
def test_jobs_hold_out_environments_that_are_declared_together(
    environments, test_envs, joint_targets, tmp_path
):
    text = MINIMAL_DECLARATION + f"trials: 1\ntest_environments: {environments}"
    jobs = parse(text).jobs("D", tmp_path)
    assert [job.args["test_envs"] for job in jobs] == test_envs
    assert [job.role.holds_out_together for job in jobs] == joint_targets

    # The seed of a checkout
    digest = hashlib.md5(str(("PACS", "CARFT", test_envs[0], 0, 0)).encode()).hexdigest()
    assert jobs[0].args["seed"] == int(digest, 16) % 2**31


def test_dummy_launcher_prints_the_commands_of_the_first_stage(tmp_path, capsys):
    launch.run_plan(launch.plan(parse(STAGES), "D", tmp_path / "out", "dummy"))
    command = "Dummy launcher: DOMAINBED_SKIP_TRAINING_IN_SPLITS=1 python -m domainbed.scripts."
    assert capsys.readouterr().out.count(command) == 24
    assert not (tmp_path / "out").exists()
