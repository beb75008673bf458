"""`rlrun bench`: what it measures, what it prints, and that it leaves nothing behind."""

import json
from pathlib import Path

import pytest
from harness import rlrun, rlrun_here

from rlrun import bench, profiling
from rlrun.build import build_agent
from rlrun.errors import UserError

QUICK = ["algo.num_epochs=1", "seconds=0.1"]


def test_the_command_prints_the_tables_and_trains_nothing_on_disk(tmp_path: Path) -> None:
    done = rlrun_here(["bench", "algo=ppo", "env=cartpole", *QUICK], tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("environment", "acting", "learning", "median", "policy", "update"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_holds_the_numbers_with_machine_versions_and_threads(tmp_path: Path) -> None:
    overrides = ["algo=a2c", "env=cartpole", "algo.num_envs=3", "device.threads=1"]
    done = rlrun_here(["bench", *overrides, "seconds=0.1", "json=deep/speed.json", "profile=true"], tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "deep" / "speed.json").read_text())
    assert report["command"] == f"rlrun bench {' '.join(overrides)} seconds=0.1 json=deep/speed.json profile=true"
    assert (report["algo"], report["env"], report["num_envs"], report["threads"]) == ("a2c", "cartpole", 3, 1)
    for speed in report["steps_per_second"].values():
        assert len(speed["windows"]) == bench.NUM_WINDOWS
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert sum(report["time_share"].values()) == pytest.approx(1)
    assert len(report["profile"]) == profiling.PROFILE_ROWS
    assert "torch" in report["packages"]
    assert "processor" in report["machine"]
    assert "host" not in report["machine"]


def test_breakouts_time_is_split_between_games_network_and_update(tmp_path: Path) -> None:
    small = ["algo.num_envs=2", "algo.num_steps=8", "algo.batch_size=16"]
    done = rlrun(["bench", "algo=ppo", "env=breakout", *small, *QUICK, "json=b.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    shares = json.loads((tmp_path / "b.json").read_text())["time_share"]
    assert min(shares[part] for part in ("environment steps", "policy", "update")) > 0.02


def test_several_jobs_are_measured_one_after_the_other(tmp_path: Path) -> None:
    done = rlrun_here(["bench", "-m", "algo=ppo,a2c", "env=cartpole", "seconds=0.1"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ppo on cartpole" in done.stdout
    assert "a2c on cartpole" in done.stdout


@pytest.mark.parametrize("arguments", [["--profile"], ["profile=true"], ["profile=True"]])
def test_a_profile_is_asked_for_as_a_flag_or_as_a_key(arguments: list[str]) -> None:
    options, overrides = bench.split(["algo=ppo", *arguments])
    assert options.profile
    assert overrides == ["algo=ppo"]
    assert not bench.split(["algo=ppo"])[0].profile


def test_watching_is_undone_and_counts_nested_parts_once() -> None:
    agent = build_agent(bench.composed(["algo=a2c", "env=cartpole", "algo.num_envs=2"])[0][0])
    algorithm = agent.algorithm
    shares = profiling.time_shares(algorithm, 0.02)
    assert set(shares) >= {"update", "policy", "environment steps", "storing, statistics"}
    assert sum(shares.values()) == pytest.approx(1)
    collector = algorithm.setup.collectors[0]
    for owner, name in ((algorithm, "step"), (collector, "collect"), (collector.envs.envs, "step")):
        assert name not in vars(owner)


def test_an_algorithm_without_collector_and_policy_is_not_asked_to_act() -> None:
    class Sweeps:
        steps = 0

    assert bench.acting(Sweeps()) is None  # type: ignore[arg-type]
    speeds = bench.measure({"acting": None, "learning": lambda: 5}, 0.01)
    assert speeds["acting"] is None
    assert "-" in list(bench.speed_table("", speeds).columns[1].cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seconds=no"], "seconds=no must be a number"),
        (["seconds=0"], "seconds=0 must be a number above 0"),
        (["profile=maybe"], "profile=maybe must be true or false"),
        (["json=."], r"json=\. must be the path of a file"),
        (["second=3"], "bench takes seconds="),
        (["algo.lr=1"], r"algo\.learning_rate"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.bench(arguments)
