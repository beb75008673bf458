"""`rlrun tune` as a person meets it: whole small studies, killed, continued, refused, and what they leave."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import assert_identical, environment, first_difference, rlrun, rlrun_here, start

from rlrun.launch import launch
from rlrun.run_folder import RunFolder, find_runs
from rlrun.tuning.confirm import Confirmation, difference, mean
from rlrun.tuning.workers import composed, play

RUN = ["algo=ppo", "env=cartpole", "total_steps=640", "algo.num_envs=4", "eval.every=160", "eval.episodes=2"]
SHORT = [*RUN, "eval.final_episodes=3", "algo.num_epochs=2"]
SPACE = ["only=algo.learning_rate,algo.num_steps", "space.algo.num_steps=[32,40,80]"]  # rollouts that divide 640
SMALL = ["tune", *SHORT, *SPACE, "algo.batch_size=32", "name=s"]
FIRST = [*SMALL, "trials=2", "seeds=2", "confirm=2"]
STUDY = Path("searches/s")


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / STUDY / "tune.json").read_text())
    return found


def trials_of(folder: Path) -> list[Any]:
    """Return all that a study has stored about its trials, without clocks."""
    from rlrun.tuning.study import NAME, STORAGES, _storage

    (kind,) = (kind for kind, name in STORAGES.items() if (folder / STUDY / name).exists())
    import optuna

    study = optuna.load_study(study_name=NAME, storage=_storage(folder / STUDY / STORAGES[kind], kind))
    return [
        (t.number, t.state.name, t.params, t.value, t.intermediate_values, sorted(t.user_attrs.items()))
        for t in study.trials
    ]


def assert_same_study(one: Path, other: Path) -> None:
    assert trials_of(one) == trials_of(other)
    runs = [[run.path.relative_to(folder) for run in find_runs(folder / "searches")] for folder in (one, other)]
    assert runs[0] == runs[1]
    for run in runs[0]:
        if RunFolder(one / run).status() == "finished":
            assert_identical(one / run, other / run)
    reports = [{k: v for k, v in report(folder).items() if k != "date"} for folder in (one, other)]
    assert first_difference(*reports) is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which FIRST has come to its end; what it printed is in `said`."""
    folder = tmp_path_factory.mktemp("finished")
    done = rlrun(FIRST, folder)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished study's folder."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def returns(run: Path) -> list[float]:
    found: list[float] = json.loads((run / "result.json").read_text())["returns"]
    return found


def test_each_trial_is_an_ordinary_run_for_each_seed_scored_by_their_last_evaluations(finished: Path) -> None:
    trials = report(finished)["trials"]
    assert [t["state"] for t in trials] == ["complete"] * 2
    assert [t["origin"] for t in trials] == ["present configuration", "tpe"]
    for trial in trials:
        folders = [finished / STUDY / f"search/cartpole/ppo/trial-{trial['number']:03d}/seed={s}" for s in (0, 1)]
        assert [RunFolder(folder).status() for folder in folders] == ["finished"] * 2
        last = [json.loads((f / "evaluations.jsonl").read_text().splitlines()[-1])["mean_return"] for f in folders]
        assert trial["scores"] == last
        assert trial["score"] == pytest.approx(sum(last) / 2)
        assert RunFolder(folders[0]).config()["algo"]["learning_rate"] == trial["params"]["algo.learning_rate"]


def test_the_optimism_gap_is_what_the_search_promised_more_than_fresh_seeds_keep(finished: Path) -> None:
    found = report(finished)
    best = max(found["trials"], key=lambda t: (t["score"], -t["number"]))
    assert found["best"]["trial"] == best["number"]
    assert (found["search_seeds"], found["confirmation"]["seeds"]) == ([0, 1], [2, 3])
    runs = sorted(finished.glob("searches/s/confirm/cartpole/ppo/best-*/seed=*"))
    fresh = [sum(returns(run)) / 3 for run in runs]
    assert found["confirmation"]["tuned"]["returns"] == pytest.approx(fresh)
    assert found["confirmation"]["optimism_gap"]["value"] == pytest.approx(best["score"] - sum(fresh) / 2)
    said = (finished / "said").read_text()
    assert "optimism gap" in said
    assert "95% intervals" in said


def test_the_tuned_file_used_as_the_study_says_trains_the_very_same_run(study: Path) -> None:
    found = report(study)
    tuned = study / STUDY / "tuned" / "ppo_cartpole_best.yaml"
    assert "rlrun tune algo=ppo" in tuned.read_text()
    best = found["trials"][found["best"]["trial"]]
    assert yaml.safe_load(tuned.read_text())["algo"]["learning_rate"] == best["params"]["algo.learning_rate"]
    assert found["use"] in (study / "said").read_text()
    again = [*found["use"].split()[1:], "seed=2", "eval.every=160", "eval.episodes=2", "eval.final_episodes=3"]
    used = rlrun_here(again, study)
    assert used.returncode == 0, used.stderr
    run = study / "outputs/cartpole/ppo/tuned=ppo_cartpole_best/seed=2"
    assert RunFolder(run).record()["tuned"] == "ppo_cartpole_best"
    (confirmed,) = study.glob("searches/s/confirm/cartpole/ppo/best-*/seed=2")
    assert returns(run) == returns(confirmed)


def test_the_same_line_again_says_what_was_found_and_more_trials_extend_it(study: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (study / STUDY).rglob("*.jsonl")}
    first = report(study)
    again = rlrun_here(FIRST, study)
    assert again.returncode == 0
    assert again.stdout == (study / "said").read_text()
    more = rlrun_here([*FIRST, "trials=3"], study)
    assert more.returncode == 0, more.stderr
    assert report(study)["trials"][:2] == first["trials"]
    assert len(report(study)["trials"]) == 3
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_another_definition_under_the_same_name_is_refused_with_the_difference(study: Path) -> None:
    other = rlrun_here([*FIRST, "algo.gamma=0.5", "sampler=random"], study)
    assert other.returncode == 2
    assert "algo.gamma: stored 0.98, asked for 0.5" in other.stderr
    assert "sampler: stored tpe, asked for random" in other.stderr


@pytest.mark.slow
def test_two_jobs_at_a_time_finish_all_trials_and_share_the_cores(tmp_path: Path) -> None:
    large = ["network.hidden=[1000,1000]", "algo.num_epochs=1"]  # so large that alone it would take all cores
    done = rlrun([*SMALL, *large, "trials=4", "seeds=1", "confirm=0", "jobs=2"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [t["state"] for t in report(tmp_path)["trials"]] == ["complete"] * 4
    threads = {run.record()["fingerprint"]["threads"] for run in find_runs(tmp_path / "searches")}
    assert threads == {max(1, len(os.sched_getaffinity(0)) // 2)}


def test_a_configuration_that_cannot_be_built_fails_its_trial_alone(tmp_path: Path) -> None:
    space = ["only=algo.batch_size", "space.algo.batch_size=[32,60]"]  # of rollouts of 128 steps
    line = ["tune", *SHORT, *space, "name=s", "trials=2", "seeds=1", "confirm=0", "sampler=random"]
    done = rlrun(line, tmp_path)
    assert done.returncode == 0, done.stderr
    trials = report(tmp_path)["trials"]
    assert [t["state"] for t in trials].count("complete") == 2
    assert {t["error"] for t in trials if t["state"] == "fail"} == {
        "algo.batch_size=60 must divide num_envs * num_steps = 128; try 64"
    }
    assert "Not confirmed" in (tmp_path / STUDY / "tuned" / "ppo_cartpole_best.yaml").read_text()


BAD_INPUT = {
    "unknown key": (["algo.gama=0.9"], ["algo.gama", "algo.gamma"]),
    "misspelt key of its own": (["trails=5"], ["trails", "trials="]),
    "wrong type": (["trials=many"], ["trials=many", "int"]),
    "no trials": (["trials=0"], ["trials=0", "at least 1"]),
    "unknown sampler": (["sampler=tpee"], ["sampler=tpee", "tpe"]),
    "unknown pruner": (["pruner=mean"], ["pruner=mean", "median"]),
    "unknown storage": (["storage=sql"], ["storage=sql", "sqlite"]),
    "sweep": (["-m", "seed=1,2"], ["-m"]),
    "a study of -m": (["+study=classic_control"], ["+study=classic_control", "rlrun -m"]),
    "fresh": (["fresh=true"], ["fresh=true", "name="]),
    "no folder's name": (["name=a/b"], ["name=a/b", "a-b"]),
    "nothing to search": (["algo=random"], ["algo=random has no search space", "tune/random.yaml"]),
    "range": (["space.algo.gamma={low: 1, high: 0}"], ["algo.gamma", "low must be less"]),
    "searched and fixed": (["algo.gamma=0.9", "space.algo.gamma=[0.9,1]"], ["algo.gamma=0.9", "leave one"]),
    "only what is not searched": (["only=algo.adam_eps"], ["algo.adam_eps", "not searched"]),
    "no evaluation": (["total_steps=100", "eval.every=200"], ["eval.every=200", "lower it"]),
    "nothing fits the budget": (["total_steps=10"], ["algo.num_steps", "total_steps=10"]),
    # From here on something has to be built before it is known to be wrong.
    "out of range": (["algo.gamma=1.5"], ["algo.gamma=1.5", "[0, 1]"]),
    "unknown id": (["env=gym", "env.id=CartPol-v1", "total_steps=3000"], ["env.id=CartPol-v1", "CartPole-v1"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_message_and_leaves_nothing_behind(case: str, tmp_path: Path) -> None:
    arguments, expected = BAD_INPUT[case]
    done = rlrun_here(["tune", "algo=ppo", *arguments], tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    for fragment in expected:
        assert fragment in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(tmp_path: Path) -> None:
    # A module that cannot be imported stands in for a package that is not installed.
    (tmp_path / "shadow" / "optuna").mkdir(parents=True)
    (tmp_path / "shadow" / "optuna" / "__init__.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-m", "rlrun", "tune", "algo=ppo"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path / "shadow")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "rlrun[tune]" in done.stderr


def test_a_pruned_run_is_shown_as_one_and_resume_ends_it_as_if_it_had_never_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [*RUN, "eval.final_episodes=3", "log.console=false", "device.threads=1"]
    config, names = composed([*line, "name=pruned"])
    asked: list[tuple[int, float]] = []

    def prune(step: int, mean_return: float) -> bool:
        asked.append((step, mean_return))
        return len(asked) == 2

    assert launch(config, names, prune=prune) == 0
    run = names.folder("outputs")
    assert run.status() == "pruned"
    assert run.result() is None
    assert [step for step, _ in asked] == [256, 384]  # the ends of rollouts after 160 and 320 steps
    assert "pruned" in rlrun_here(["ls"], tmp_path).stdout

    # Killed before it could say so: the search judges again what it was told, and trains no further.
    run.update_record(status="running")
    assert play([*line, "name=pruned"], lambda step, _: step == 384, None).status == "pruned"
    assert (run.status(), run.record()["steps"]) == ("pruned", 384)

    assert rlrun_here(["resume", str(run.path)], tmp_path).returncode == 0
    assert rlrun_here([*line, "name=whole"], tmp_path).returncode == 0
    assert_identical(run.path, Path("outputs/cartpole/ppo/whole/seed=0"))


@pytest.mark.crash
def test_ctrl_c_saves_says_how_to_go_on_and_the_rest_is_as_if_undisturbed(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    line = [*SMALL, "trials=2", "seeds=1", "confirm=1", "total_steps=6400", "eval.every=1600"]
    assert rlrun(line, whole).returncode == 0
    process = start(line, broken)
    wait_for(lambda: list(broken.rglob("checkpoints/step-*.json")), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    assert {run.status() for run in find_runs(broken)} <= {"interrupted", "finished"}
    again = rlrun(line, broken)
    assert again.returncode == 0, again.stderr
    assert_same_study(whole, broken)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that do the runs of a `rlrun tune`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_text()
            except OSError:
                continue
            if parent == process.pid and "spawn_main" in command:
                found.append(int(folder.name))
    return found


@pytest.mark.crash
@pytest.mark.parametrize(
    ("sampler", "storage", "size"),  # of the trials that TPE proposes, ten are random
    [("tpe", "journal", ["trials=13", "seeds=1"]), ("random", "sqlite", ["trials=6", "seeds=2"])],
)
def test_a_killed_study_ends_as_an_undisturbed_one(sampler: str, storage: str, size: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    line = [*SMALL, *size, "confirm=1", f"sampler={sampler}", f"storage={storage}"]
    assert rlrun(line, whole).returncode == 0
    evaluations = count(whole, "search/**/evaluations.jsonl")
    # The parent in the middle of trials, when such a part of all evaluations has been written.
    for part in (0.1, 0.6):
        process = start(line, broken)
        wait_for(lambda n=part: count(broken, "search/**/evaluations.jsonl") >= n * evaluations, process)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # A worker: its parent has another one go on.
    process = start(line, broken)
    wait_for(lambda: count(broken, "search/**/evaluations.jsonl") >= 0.85 * evaluations, process)
    for worker in workers_of(process):
        os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_same_study(whole, broken)


def count(folder: Path, files: str) -> int:
    """Return the number of lines in all these files of the study below a folder."""
    return sum(path.read_bytes().count(b"\n") for path in (folder / STUDY).glob(files))


def test_the_interval_of_a_difference_holds_it_and_one_seed_has_none() -> None:
    gap = difference([10.0, 12.0, 14.0], [1.0, 2.0, 3.0])
    assert gap.value == 10.0
    assert gap.interval is not None
    assert 7.0 < gap.interval[0] < 10.0 < gap.interval[1] < 13.0
    assert difference([5.0], [3.0]).interval is None
    assert mean([5.0, 5.0]).interval == (5.0, 5.0)


@pytest.mark.parametrize(
    ("tuned", "present", "said"),
    [
        ([10.0] * 5, [1.0] * 5, "better than"),
        ([1.0] * 5, [10.0] * 5, "worse than"),
        ([1.0, 9.0, 5.0, 2.0, 8.0], [5.0, 4.0, 6.0, 7.0, 3.0], "not told apart"),
        ([1.0] * 5, None, "came out best"),
        ([2.0], [1.0], "one seed does not tell"),
        ([2.0, 2.0], [1.0, 1.0], "too narrow to trust"),
    ],
)
def test_the_verdict_goes_by_the_interval(tuned: list[float], present: list[float] | None, said: str) -> None:
    confirmation = Confirmation(list(range(len(tuned))), [3.0, 4.0], tuned, present)
    assert said in confirmation.verdict()
