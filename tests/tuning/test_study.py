"""Trials and their values: proposals that need no sampler's state, verdicts that repeat, a file that is mended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from rlrun.tuning.space import Space
from rlrun.tuning.study import PRESENT, Study, Trial

SPACE: Space = {
    "algo.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "algo.gamma": [0.9, 0.99, "${algo.gae_lambda}"],
    "algo.num_epochs": {"low": 1, "high": 20, "log": False},
    "network.hidden": [[64, 64], [32]],
}
KNOWN: dict[str, Any] = {
    "algo.learning_rate": 3e-4,
    "algo.gamma": 0.99,
    "algo.num_epochs": 4,
    "network.hidden": [32],
    "algo.gae_lambda": 0.95,
}
Open = Callable[..., Study]


@pytest.fixture
def open_study(tmp_path: Path) -> Open:
    def make(name: str = "study", sampler: str = "tpe", storage: str = "journal", pruner: str = "median") -> Study:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Study(folder, storage, SPACE, sampler, pruner, seed=7, every=100, per_run=10)

    return make


def value(params: dict[str, Any]) -> float:
    return -abs(params["algo.num_epochs"] - 5) - abs(params["algo.learning_rate"] - 1e-3)


def complete(study: Study, trial: Trial, scores: list[float]) -> None:
    study.finish(trial, TrialState.COMPLETE, scores)


def all_trials(study: Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.params, t.value, t.intermediate_values, t.user_attrs) for t in study.trials()]


@pytest.mark.parametrize(
    ("sampler", "storage", "killed_in"),
    [("random", "journal", range(14)), ("tpe", "journal", range(14)), ("tpe", "sqlite", [4, 12])],
)
def test_a_study_killed_within_its_trials_proposes_what_an_undisturbed_one_does(
    sampler: str, storage: str, killed_in: list[int], open_study: Open
) -> None:
    whole, broken = (open_study(name, sampler, storage) for name in ("whole", "broken"))
    for i in range(14):
        trial = whole.propose(KNOWN)
        complete(whole, trial, [value(trial.params)])
        trial = broken.propose(KNOWN)
        if i in killed_in:
            broken = open_study("broken", sampler, storage)
            (trial,) = broken.unfinished()
        assert trial.number == i
        complete(broken, trial, [value(trial.params)])
    assert all_trials(broken) == all_trials(whole)
    assert len({str(t.params) for t in whole.trials()}) == 14


def test_both_storages_give_the_same_study(open_study: Open) -> None:
    studies = [open_study(storage, "tpe", storage) for storage in ("journal", "sqlite")]
    for study in studies:
        for _ in range(13):
            trial = study.propose(KNOWN)
            complete(study, trial, [value(trial.params), 0.5])
    assert all_trials(studies[0]) == all_trials(studies[1])


def test_the_first_trial_is_the_present_configuration_if_the_space_holds_it(open_study: Open) -> None:
    first = open_study("inside").propose(KNOWN)
    assert first.params == {
        "algo.learning_rate": 3e-4,
        "algo.gamma": 0.99,
        "algo.num_epochs": 4,
        "network.hidden": "[32]",
    }
    assert open_study("inside").trials()[0].user_attrs["origin"] == PRESENT
    outside = open_study("outside")
    outside.propose({**KNOWN, "algo.num_epochs": 21})
    assert outside.trials()[0].user_attrs["origin"] == "tpe"


def test_a_failed_trial_keeps_its_message_and_is_never_the_best(open_study: Open) -> None:
    study = open_study()
    study.finish(study.propose(KNOWN), TrialState.FAIL, [], "algo.batch_size=100 must divide 256")
    assert study.trials()[0].user_attrs["error"] == "algo.batch_size=100 must divide 256"
    assert study.best() is None


def test_what_fails_is_proposed_less_and_less(open_study: Open) -> None:
    study = open_study()
    failed = []
    for _ in range(40):
        trial = study.propose(KNOWN)
        failed.append(trial.params["network.hidden"] == "[32]")
        if failed[-1]:
            study.finish(trial, TrialState.FAIL, [], "too small")
        else:
            complete(study, trial, [1.0])
    assert sum(failed[:10]) >= 3
    assert sum(failed[-20:]) <= 4


def test_the_best_trial_is_the_first_of_those_with_the_highest_mean(open_study: Open) -> None:
    study = open_study()
    for scores in ([1.0, 2.0], [5.0, 1.0], [3.0, 3.0], [0.0, 0.0]):
        complete(study, study.propose(KNOWN), scores)
    best = study.best()
    assert best is not None
    assert (best.number, best.value, best.user_attrs["scores"]) == (1, 3.0, [5.0, 1.0])


def run_through(study: Study, trial: Trial, curves: list[list[float]]) -> tuple[int, int] | None:
    """Report evaluations of one run after the other; return (run, step) of the one that prunes the trial."""
    for run, curve in enumerate(curves):
        for index, mean_return in enumerate(curve, 1):
            if study.evaluated(trial, run, 100 * index, mean_return):
                study.finish(trial, TrialState.PRUNED, [])
                return run, 100 * index
    complete(study, trial, [curve[-1] for curve in curves])
    return None


GOOD = [[float(i) for i in range(1, 11)], [2.0 * i for i in range(1, 11)]]
BAD = [[0.1] * 10, [0.1] * 10]


def test_a_trial_below_the_median_is_pruned_once_there_are_enough_to_compare_with(open_study: Open) -> None:
    study = open_study()
    for _ in range(4):
        assert run_through(study, study.propose(KNOWN), GOOD) is None
    assert run_through(study, study.propose(KNOWN), BAD) is None  # the fifth: four are too few
    assert run_through(study, study.propose(KNOWN), GOOD) is None
    # The first quarter of a run is not judged; the one after it is.
    assert run_through(study, study.propose(KNOWN), BAD) == (0, 300)
    pruned = study.trials()[-1]
    assert pruned.state == TrialState.PRUNED
    assert pruned.value == 0.1


def test_a_run_is_judged_by_its_own_evaluations_and_the_mean_with_the_runs_before(open_study: Open) -> None:
    study = open_study()
    for _ in range(5):
        run_through(study, study.propose(KNOWN), GOOD)
    # Run 0 as good as the others; run 1 brings the mean at equal step below theirs.
    assert run_through(study, study.propose(KNOWN), [GOOD[0], BAD[1]]) == (1, 300)
    assert study.trials()[-1].intermediate_values[11 + 3] == pytest.approx((3.0 + 0.1) / 2)


def test_nothing_is_pruned_where_that_was_not_asked_for(open_study: Open) -> None:
    study = open_study(pruner="none")
    for _ in range(6):
        run_through(study, study.propose(KNOWN), GOOD)
    assert run_through(study, study.propose(KNOWN), BAD) is None


def test_a_verdict_repeats_when_a_run_goes_back_to_its_checkpoint(open_study: Open) -> None:
    study = open_study()
    for _ in range(5):
        run_through(study, study.propose(KNOWN), GOOD)
    trial = study.propose(KNOWN)
    verdicts = [study.evaluated(trial, 0, 100 * i, 1.5) for i in range(1, 5)]
    assert verdicts == [False, False, True, True]
    again = open_study()
    (resumed,) = again.unfinished()
    assert resumed.params == trial.params
    assert [again.evaluated(resumed, 0, 100 * i, 1.5) for i in range(1, 5)] == verdicts


def test_a_run_that_ended_early_counts_with_its_last_evaluation() -> None:
    trial = Trial(0, {}, {0: {3: 10.0, 5: 500.0}, 1: {4: 20.0, 9: 40.0}})
    assert trial.mean(0, 9) == 500.0
    assert trial.mean(1, 4) == 15.0
    assert trial.mean(1, 9) == 270.0


def test_a_half_written_line_and_a_lock_of_a_dead_process_are_mended(tmp_path: Path, open_study: Open) -> None:
    study = open_study()
    complete(study, study.propose(KNOWN), [1.0])
    study.propose(KNOWN)
    before = all_trials(study)
    journal = tmp_path / "study" / "trials.log"
    with open(journal, "ab") as file:
        file.write(b'{"op_code":7,"worker_id":"x')
    journal.with_name("trials.log.lock").symlink_to(journal)
    again = open_study()
    assert all_trials(again) == before
    complete(again, again.unfinished()[0], [2.0])
    assert [t.value for t in open_study().trials()] == [1.0, 2.0]


def test_a_database_half_made_is_made_anew(tmp_path: Path, open_study: Open) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "trials.db.new").write_bytes(b"SQLite format 3\x00 cut")
    study = open_study(storage="sqlite")
    assert study.propose(KNOWN).number == 0
    assert not (folder / "trials.db.new").exists()


def test_importances_need_some_trials_and_then_name_every_parameter(open_study: Open) -> None:
    study = open_study(sampler="random")
    for i in range(12):
        assert study.importances() == {} or i >= 10
        trial = study.propose(KNOWN)
        complete(study, trial, [value(trial.params)])
    shares = study.importances()
    assert shares.keys() == SPACE.keys()
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda key: shares[key]) == "algo.num_epochs"
