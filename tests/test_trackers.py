"""Trackers get each number once and disturb nothing: neither what is learned, nor its speed, nor its end."""

import fcntl
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import assert_identical, kill_underway, rlrun, the_run
from mlflow import MlflowClient
from wandb.proto.wandb_internal_pb2 import Record

from rlrun import mirror, trackers
from rlrun.errors import UserError
from rlrun.facts import FAILED, FINISHED, INTERRUPTED, Facts
from rlrun.logger import RESULT, Logger, read_rows
from rlrun.mirror import Mirror, Sender, serve
from rlrun.trackers import MLflow, WandB

FACTS = Facts(
    env="cartpole",
    algo="ppo",
    variant="default",
    seed=3,
    started="2026-01-02T03:04:05+00:00",
    host="here",
    config={"seed": 3, "total_steps": 100, "algo": {"gamma": 0.9, "end": None}, "log": {"every": 10}},
)
BLOCK = 32_768  # bytes, of the log format that W&B's files are in
HEADER = 7


def row(step: int, **values: float) -> dict[str, Any]:
    return {"step": step, **values, "time/unix": 1000.0 + step}


class Recorder:
    """A tracker that remembers; what it is told to fail at raises."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ends: list[str] = []

    def start(self, facts: Facts) -> str:
        self._maybe_fail("start")
        return "in memory"

    def has(self, step: int, tag: str) -> bool:
        return any(step <= s and tag in values for s, values in self.rows)

    def row(self, step: int, values: Mapping[str, float], unix: float) -> None:
        self._maybe_fail("row")
        self.rows.append((step, dict(values)))

    def finish(self, status: str) -> None:
        self._maybe_fail("finish")
        self.ends.append(status)

    def _maybe_fail(self, what: str) -> None:
        if self.fails == what:
            raise ConnectionError(f"no {what}\nand more")


def session(tracker: Any, stored: list[Any], live: list[Any], status: str | None) -> list[str]:
    """Go through a session as the other process does; without a status, training was killed. Return the notices."""
    notices: list[str] = []
    sender = Sender({"it": tracker}, notices.append)
    sender.start(FACTS)
    end = [] if status is None else [{"status": status}]
    serve(sender, stored, iter([*({"row": r} for r in live), *end]))
    return notices


# --- What is sent ---------------------------------------------------------------------------------------


def test_the_rows_of_one_step_are_given_together_and_the_clock_that_keys_them_is_not() -> None:
    it = Recorder()
    notices = session(it, [], [row(10, loss=1.0), row(10, reward=5.0), row(20, loss=0.5)], FINISHED)
    assert it.rows == [(10, {"loss": 1.0, "reward": 5.0}), (20, {"loss": 0.5})]
    assert it.ends == [FINISHED]
    assert notices == ["it: in memory"]


def test_half_a_step_waits_for_the_session_that_finishes_it() -> None:
    it = Recorder()
    session(it, [], [row(10, loss=1.0), row(20, loss=0.5)], None)  # killed before the evaluation of step 20
    assert it.rows == [(10, {"loss": 1.0})]
    assert it.ends == [INTERRUPTED]
    session(it, [row(10, loss=1.0), row(20, loss=0.5)], [row(20, reward=5.0)], FINISHED)
    assert it.rows == [(10, {"loss": 1.0}), (20, {"loss": 0.5, "reward": 5.0})]


def test_what_was_lost_is_made_up_for_and_what_is_there_is_not_sent_twice() -> None:
    it = Recorder()
    session(it, [], [row(s, loss=float(s)) for s in (10, 20, 30)], None)
    it.rows.pop(0)  # as if the tracker had not got it
    it.rows = []
    session(it, [row(10, loss=10.0)], [row(s, loss=float(s)) for s in (20, 30, 40)], FINISHED)
    assert [step for step, _ in it.rows] == [10, 20, 30, 40]


def test_a_number_that_is_not_finite_is_left_out() -> None:
    it = Recorder()
    session(it, [], [row(10) | {"loss": None, "reward": 1.0}], FINISHED)
    assert it.rows == [(10, {"reward": 1.0})]


@pytest.mark.parametrize("place", ["start", "row", "finish"])
def test_a_tracker_that_fails_is_dropped_with_one_notice_and_the_others_go_on(place: str) -> None:
    bad, good = Recorder(fails=place), Recorder()
    notices: list[str] = []
    sender = Sender({"bad": bad, "good": good}, notices.append)
    sender.start(FACTS)
    serve(sender, [], iter([{"row": row(s, loss=1.0)} for s in (10, 20)] + [{"status": FINISHED}]))
    about_bad = [n for n in notices if n.startswith("bad") and n != "bad: in memory"]
    assert about_bad == [f"bad: off from here on, training goes on (ConnectionError: no {place})"]
    assert [step for step, _ in good.rows] == [10, 20]
    assert good.ends == [FINISHED]


# --- Weights & Biases -----------------------------------------------------------------------------------


def wandb_records(path: Path) -> Iterator[Record]:
    """Yield the records of a .wandb file: chunks in blocks, each with checksum, length and kind before it."""
    data, position, parts = path.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the history in all offline sessions of a run, in their order."""
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    records = [r for file in files for r in wandb_records(file) if r.WhichOneof("record_type") == "history"]
    return [{(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in r.history.item} for r in records]


def offline(folder: Path) -> WandB:
    return WandB(folder, {"project": "p", "entity": None, "mode": "offline"})


def test_wandb_has_each_step_once_over_sessions(tmp_path: Path) -> None:
    steps = [row(s, **{"eval/mean_reward": s / 2}) for s in (10, 20, 30, 40)]
    session(offline(tmp_path), [], steps[:3], None)  # 30 is held back
    time.sleep(1.1)  # W&B names the folder of a session by its second
    session(offline(tmp_path), steps[:1], steps[1:], FINISHED)
    history = wandb_rows(tmp_path)
    assert [(r["_step"], r["eval/mean_reward"], r["_timestamp"]) for r in history] == [
        (10, 5.0, 1010.0),
        (20, 10.0, 1020.0),
        (30, 15.0, 1030.0),
        (40, 20.0, 1040.0),
    ]


def test_wandb_knows_what_the_run_is(tmp_path: Path) -> None:
    session(offline(tmp_path), [], [row(10, loss=1.0)], FAILED)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = list(wandb_records(path))
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group, run.project) == (FACTS.id, "cartpole/ppo/default", "p")
    assert run.display_name == "cartpole/ppo/default/seed=3"
    config = {u.key: json.loads(u.value_json) for r in records for u in r.config.update}
    assert config["algo"] == {"gamma": 0.9, "end": None}
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [1]


# --- MLflow ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make MLflow's tables once: that takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").create_experiment("e")
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


def mlflow_run(database: str, experiment: str = "e", run_id: str | None = None) -> Any:
    """Return the only run there, or the only one of an rlrun run."""
    client = MlflowClient(tracking_uri=database)
    wanted = f"tags.`rlrun.id` = '{run_id}'" if run_id is not None else ""
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], wanted)
    return run


def mlflow_history(
    database: str, experiment: str = "e", run_id: str | None = None
) -> dict[str, list[tuple[int, float]]]:
    run = mlflow_run(database, experiment, run_id)
    client = MlflowClient(tracking_uri=database)
    found = {tag: client.get_metric_history(run.info.run_id, tag) for tag in run.data.metrics}
    return {tag: [(m.step, m.value) for m in metrics] for tag, metrics in found.items()}


def test_mlflow_has_each_number_once_over_sessions_and_knows_what_the_run_is(database: str, tmp_path: Path) -> None:
    def tracker() -> MLflow:
        return MLflow(tmp_path, {"tracking_uri": database, "experiment": "e"})

    first, second = row(10, loss=1.0), row(20, loss=0.5)
    session(tracker(), [], [first, second, row(30, loss=0.25)], None)
    assert mlflow_run(database).info.status == "KILLED"
    session(tracker(), [first], [second, row(20, reward=7.0), row(30, loss=0.25)], FINISHED)
    assert mlflow_history(database) == {"loss": [(10, 1.0), (20, 0.5), (30, 0.25)], "reward": [(20, 7.0)]}
    run = mlflow_run(database)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "cartpole/ppo/default/seed=3"
    assert run.data.params == {
        "seed": "3",
        "total_steps": "100",
        "algo.gamma": "0.9",
        "algo.end": "None",
        "log.every": "10",
    }
    assert run.data.tags["group"] == "cartpole/ppo/default"


# --- The other process ----------------------------------------------------------------------------------


@pytest.fixture
def make_mirror(tmp_path: Path) -> Iterator[Callable[..., tuple[Mirror, list[str]]]]:
    """Return the function that makes a mirror without trackers, and the list of its notices."""
    made: list[Mirror] = []

    def make() -> tuple[Mirror, list[str]]:
        notices: list[str] = []
        made.append(Mirror(tmp_path, FACTS, {}, notices.append))
        (tmp_path / "metrics.jsonl").touch()
        made[-1].start(tmp_path / "metrics.jsonl", 0)
        return made[-1], notices

    yield make
    for one in made:
        assert one._process is not None
        one._process.kill()
        one._process.wait()


def test_training_never_waits_for_a_process_that_does_not_read(make_mirror: Any) -> None:
    slow, notices = make_mirror()
    os.kill(slow._process.pid, signal.SIGSTOP)
    started = time.monotonic()
    for step in range(20_000):
        slow.row(row(step, loss=1.0))
    assert time.monotonic() - started < 5
    assert len(notices) == 1
    assert "off from here on" in notices[0]


def test_training_goes_on_when_the_process_is_gone_and_says_so_once(make_mirror: Any) -> None:
    gone, notices = make_mirror()
    gone._process.kill()
    gone._process.wait()
    for step in range(3):
        gone.row(row(step, loss=1.0))
    gone.finish(FINISHED)
    assert len(notices) == 1
    assert "off from here on" in notices[0]


def test_a_process_that_cannot_be_started_costs_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    missing = Mirror(tmp_path, FACTS, {}, notices.append)
    missing.start(tmp_path / "metrics.jsonl", 0)
    missing.row(row(1, loss=1.0))
    missing.finish(FINISHED)
    assert len(notices) == 1
    assert "cannot be started" in notices[0]


def test_the_end_of_a_run_does_not_wait_for_ever(make_mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "FLUSH_SECONDS", 0.2)
    slow, notices = make_mirror()
    os.kill(slow._process.pid, signal.SIGSTOP)
    slow.finish(FINISHED)
    assert "background" in notices[0]


def test_a_run_that_ended_before_it_began_has_nothing_to_finish(tmp_path: Path) -> None:
    logger = Logger(tmp_path, tensorboard=False, mirror=Mirror(tmp_path, FACTS, {}, pytest.fail))
    logger.close(FAILED)


# --- Bad input ------------------------------------------------------------------------------------------


def settings(*names: str, tracking_uri: str | None = None) -> dict[str, Any]:
    return {"log": {"trackers": [*names]}, "mlflow": {"tracking_uri": tracking_uri}}


def test_an_unknown_tracker_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"wandbb is not known. Did you mean wandb\? Known: wandb, mlflow"):
        trackers.check(settings("wandbb"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_answered_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf'pip install "rlrun\[{name}\]"'):
        trackers.check(settings(name))


def test_a_password_in_the_configuration_is_refused_because_that_is_stored() -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        trackers.check(settings("mlflow", tracking_uri="https://me:secret@host/"))
    assert "secret" not in str(refused.value)
    trackers.check(settings("mlflow", tracking_uri="https://host:5000/"))


# --- The command line -----------------------------------------------------------------------------------

TRAIN = ["algo=ppo", "env=cartpole", "algo.num_envs=4", "algo.num_steps=32", "total_steps=6000", "log.every=300"]
TRAIN += ["algo.batch_size=64", "eval.every=1500", "eval.episodes=3", "eval.final_episodes=4", "checkpoint.every=700"]
TRAIN += ["log.console=false"]


@pytest.mark.crash
def test_a_run_with_trackers_is_killed_goes_on_and_equals_one_without_and_each_has_each_number_once(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    plain, tracked = tmp_path / "plain", tmp_path / "tracked"
    plain.mkdir()
    tracked.mkdir()
    assert rlrun(TRAIN, plain).returncode == 0
    options = ["log.trackers=[wandb,mlflow]", "wandb.mode=offline", f"mlflow.tracking_uri={database}"]
    kill_underway(random.Random(0), 0.1, 0.6, [*TRAIN, *options], tracked)
    done = rlrun([*TRAIN, *options], tracked)
    assert done.returncode == 0, done.stderr
    run = the_run(tracked)
    with open(run / ".trackers.lock") as lock:  # the other process may still be at it
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert_identical(the_run(plain), run)

    expected: dict[str, list[int]] = {RESULT: [json.loads((run / "result.json").read_text())["steps"]]}
    values: dict[tuple[int, str], float] = {}
    for stored in read_rows(run / "metrics.jsonl"):
        for tag in stored.keys() - {"step", "time/unix"}:
            expected.setdefault(tag, []).append(stored["step"])
            values[stored["step"], tag] = stored[tag]
    # Those that were through before they could be killed are there, too.
    history = mlflow_history(database, "rlrun", Facts.of(json.loads((run / "run.json").read_text()), {}).id)
    assert {tag: [step for step, _ in points] for tag, points in history.items()} == expected
    timeless = {tag: points for tag, points in history.items() if not tag.startswith("time/") and tag != RESULT}
    assert all(values[step, tag] == value for tag, points in timeless.items() for step, value in points)
    rows = wandb_rows(run)
    assert {tag: [r["_step"] for r in rows if tag in r] for tag in expected} == expected
    assert all(values[r["_step"], tag] == r[tag] for r in rows for tag in timeless.keys() & r.keys())
    secret = os.environ["WANDB_API_KEY"].encode()
    assert not [path for path in run.rglob("*") if path.is_file() and secret in path.read_bytes()]


@pytest.mark.crash
def test_a_missing_server_costs_a_notice_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    quick = ["algo=ppo", "env=cartpole", "total_steps=300", "eval.final_episodes=2", "log.console=false"]
    options = ["log.trackers=[mlflow]", "mlflow.tracking_uri=http://127.0.0.1:9"]
    done = rlrun([*quick, *options], tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("mlflow: off from here on") == 1
    assert (the_run(tmp_path) / "result.json").exists()


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    done = rlrun(["algo=ppo", "log.trackers=[wandbb]"], tmp_path)
    assert done.returncode == 2
    assert "Did you mean wandb?" in done.stderr
    assert not list(tmp_path.iterdir())
