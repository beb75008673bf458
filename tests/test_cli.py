"""The command line as a person meets it.

Where a process of its own proves nothing more, the command runs in this one, which spares seconds of imports.
"""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest
import torch
from harness import assert_identical, environment, rlrun, rlrun_here, rows, start, the_run

import rlrun as package
from rlrun.checkpoint import Checkpoints

SHORT = ["algo=ppo", "env=cartpole", "total_steps=1000", "eval.final_episodes=2", "eval.episodes=2"]
DEFAULT = Path("outputs/cartpole/ppo/total_steps=1000/seed=0")

BAD_INPUT = {
    "value without a key": (["=3"], ["=3", "key=value"]),
    "infinite": (["algo.learning_rate=inf"], ["algo.learning_rate=inf", "out of range"]),
    "no folder": (["outputs="], ["outputs=", "expected the folder"]),
    "unknown key": (["algo.lr=1"], ["algo.lr", "algo.learning_rate"]),
    "unknown key of another library": (["timesteps=1000"], ["timesteps", "total_steps"]),
    "another library's num_envs": (["n_envs=4"], ["n_envs", "algo.num_envs"]),
    "misspelt key": (["algo.gama=0.9"], ["algo.gama", "algo.gamma"]),
    "added key that nothing reads": (["+algo.foo=1"], ["algo.foo"]),
    "added top-level key": (["+foo=1"], ["foo"]),
    "wrong type": (["algo.gamma=high"], ["algo.gamma=high", "float"]),
    "no whole number": (["algo.num_envs=2.5"], ["algo.num_envs=2.5", "int"]),
    "no number": (["total_steps=1e3.4"], ["total_steps=1e3.4", "int"]),
    "null": (["algo.gamma=null"], ["algo.gamma=null", "float"]),
    "choice": (["network.activation=sigmoyd"], ["network.activation=sigmoyd", "tanh"]),
    "unknown option": (["algo=pppo"], ["algo=pppo", "ppo", "a2c"]),
    "unknown env option": (["env=cartpol"], ["env=cartpol", "cartpole"]),
    "several values without -m": (["seed=1,2"], ["seed", "-m"]),
    "missing value": (["env=gym"], ["env.id"]),
    "missing game": (["env=atari"], ["env.game"]),
    "unknown verb": (["resme", "x"], ["resme", "resume"]),
    "not a run": (["resume", "nowhere"], ["nowhere", "not a run folder"]),
    "negative seed": (["seed=-1"], ["seed=-1"]),
    "no steps": (["total_steps=0"], ["total_steps=0", "at least 1"]),
    "no cadence": (["log.every=0"], ["log.every=0", "at least 1"]),
    "probability": (["env=breakout", "env.repeat_action_probability=1.5"], ["env.repeat_action_probability=1.5"]),
    "module that is not there": (["env=gym", "env.id=A-v0", "env.module=no_such"], ["env.module=no_such"]),
    # From here on something has to be built before it is known to be wrong.
    "out of range": (["algo.gamma=1.5"], ["algo.gamma=1.5", "[0, 1]"]),
    "indivisible batch": (["algo.batch_size=100"], ["algo.batch_size=100", "256", "128"]),
    "unknown id": (["env=gym", "env.id=CartPol-v1"], ["env.id=CartPol-v1", "CartPole-v1"]),
    "unknown kwargs": (["env=cartpole", "+env.kwargs.foo=1"], ["foo"]),
    "unknown ROM": (["env=atari", "env.game=breakot"], ["env.game=breakot", "breakout"]),
    "network that does not fit": (["env=cartpole", "network=nature_cnn"], ["network=mlp"]),
    "no CUDA here": (["device=cuda"], ["device=cuda", "device=cpu"]),
    "duration": (["stop.after_time=soon"], ["stop.after_time=soon"]),
    "too many environments": (
        ["algo.num_envs=100_000_000", "algo.batch_size=250"],
        ["algo.num_envs=100000000", "memory"],
    ),
    "empty sweep": (["-m", "seed=range(0)"], ["no points"]),
    "one point twice": (["-m", "seed=1,1"], ["seed=1", "twice"]),
    "one name for a sweep": (["-m", "name=x", "algo.gamma=0.9,0.8"], ["name=", "algo.gamma"]),
    "protocol without a game": (["env=cartpole", "protocol=machado"], ["protocol=machado", "Atari"]),
    "name that is no folder": (["name=a/b"], ["name=a/b", "a-b"]),
    "layer of no width": (["network.hidden=[64,-1]"], ["network.hidden=[64, -1]"]),
    "no picture": (["env=breakout", "env.image_size=0"], ["env.image_size=0"]),
    "no frames": (["env=breakout", "env.frame_skip=0"], ["env.frame_skip=0"]),
    "no environments": (["algo.num_envs=-1"], ["algo.num_envs=-1"]),
    "no room": (["algo.num_envs=8", "env=breakout", "algo.num_steps=10_000_000"], ["memory", "algo.num_steps"]),
}


# One of each way to go wrong is typed at a real process: a verb, Hydra's grammar, a value, what is built, a sweep.
IN_PROCESSES = ("unknown verb", "misspelt key", "no whole number", "out of range", "one point twice")


@pytest.fixture(scope="module")
def a_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = rlrun(SHORT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def finished(a_finished_run: Path, tmp_path: Path) -> Path:
    """Return a folder in which the run of SHORT lies finished at DEFAULT; the test may change it."""
    shutil.copytree(a_finished_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_message_and_leaves_nothing_behind(case: str, tmp_path: Path) -> None:
    arguments, expected = BAD_INPUT[case]
    if case == "no CUDA here" and torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    done = (rlrun if case in IN_PROCESSES else rlrun_here)(arguments, tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    for fragment in expected:
        assert fragment in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_algorithm_that_cannot_act_in_an_environment_is_refused_before_training(tmp_path: Path) -> None:
    done = rlrun_here([*third_party(), "algo=hill_climbing", "env=pendulum"], tmp_path)
    assert done.returncode == 2
    assert "action space" in done.stderr
    assert "Discrete" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    # A module that cannot be imported stands in for a package that is not installed.
    (tmp_path / "shadow" / "Box2D").mkdir(parents=True)
    (tmp_path / "shadow" / "Box2D" / "__init__.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-m", "rlrun", "env=lunarlander"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path / "shadow")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "rlrun[box2d]" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_run_leaves_everything_that_is_promised(finished: Path) -> None:
    run = finished / DEFAULT
    files = {p.name.split(".out.")[0] for p in run.iterdir()}
    assert files - {".lock", "run.log"} == {
        *("config.yaml", "run.json", "result.json", "metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"),
        *("events", "checkpoints"),
    }
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["steps"] >= 1000
    assert {"command", "code", "packages", "machine", "protocol", "fingerprint", "lineage"} <= record.keys()
    result = json.loads((run / "result.json").read_text())
    assert len(result["returns"]) == len(result["lengths"]) == len(result["seeds"]) == 2
    assert result["mean_return"] == pytest.approx(sum(result["returns"]) / 2)
    assert result["protocol"]["id"] == "CartPole-v1"
    tags = {key for row in rows(run / "metrics.jsonl") for key in row}
    assert {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "train/value_loss",
        "train/approx_kl",
        "eval/mean_reward",
    } <= tags
    assert set(result["seeds"]).isdisjoint(s for row in rows(run / "evaluations.jsonl") for s in row["seeds"])


def test_a_finished_run_says_so_and_is_not_touched(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / DEFAULT).rglob("*") if p.is_file()}
    again = rlrun(SHORT, finished)
    assert again.returncode == 0
    assert "is finished" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in (finished / DEFAULT).rglob("*") if p.is_file()} == before


def test_fresh_sets_the_old_run_aside_and_two_runs_of_one_command_are_identical(finished: Path) -> None:
    again = rlrun([*SHORT, "fresh=true"], finished)
    assert again.returncode == 0
    (old,) = (finished / "outputs" / ".aside").rglob("run.json")
    assert str(old.parent.relative_to(finished)) in again.stderr
    assert_identical(old.parent, finished / DEFAULT, tensorboard=False)
    assert not list(old.parent.glob("events.*"))  # else TensorBoard would show both
    assert the_run(finished) == finished / DEFAULT


def test_a_finished_run_says_that_it_was_examined_with_another_number_of_episodes(finished: Path) -> None:
    again = rlrun_here([*SHORT, "eval.final_episodes=4"], finished)
    assert again.returncode == 0
    assert "that of 2 episodes, not of eval.final_episodes=4" in again.stderr


def test_a_key_typed_twice_names_the_folder_once(tmp_path: Path) -> None:
    assert rlrun_here([*SHORT, "algo.gamma=0.9", "algo.gamma=0.8"], tmp_path).returncode == 0
    assert "gamma=0.9" not in the_run(tmp_path).parent.name
    assert the_run(tmp_path).parent.name.count("gamma") == 1


def test_another_configuration_under_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    assert rlrun_here([*SHORT, "name=mine"], tmp_path).returncode == 0
    done = rlrun_here([*SHORT, "name=mine", "algo.gamma=0.9"], tmp_path)
    assert done.returncode == 2
    assert "algo.gamma: stored 0.98, asked for 0.9" in done.stderr
    assert "fresh=true" in done.stderr
    cadence = rlrun_here([*SHORT, "name=mine", "log.every=17"], tmp_path)
    assert cadence.returncode == 0
    assert "is finished" in cadence.stderr


def test_two_processes_on_one_run_are_refused(tmp_path: Path) -> None:
    process = start([*SHORT, "total_steps=1e9", "name=busy", "log.console=false"], tmp_path)
    try:
        while not list(tmp_path.rglob("metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.05)
        listing = rlrun_here(["ls"], tmp_path).stdout
        assert "running" in listing
        second = rlrun_here([*SHORT, "total_steps=1e9", "name=busy"], tmp_path)
        assert second.returncode == 2
        assert "another process" in second.stderr
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert "interrupted" in rlrun_here(["ls"], tmp_path).stdout


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    # A rollout of very many steps stands between the first signal and the next boundary.
    process = start([*SHORT, "total_steps=1e8", "algo.num_steps=5000000", "algo.batch_size=8000"], tmp_path)
    try:
        while not list(tmp_path.rglob("metrics.jsonl")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        time.sleep(1.5)  # the first step has begun: a signal before it would end the run by itself
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 143


def test_resume_extends_a_finished_run_and_records_it(finished: Path) -> None:
    done = rlrun_here(["resume", str(DEFAULT), "total_steps=2000", "log.every=100"], finished)
    assert done.returncode == 0, done.stderr
    assert "1000 -> 2000" in done.stderr
    record = json.loads((finished / DEFAULT / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["steps"] >= 2000
    assert record["lineage"][-1]["changed"]["total_steps"] == [1000, 2000]


def test_another_thread_count_goes_on_and_says_which_promise_is_dropped(finished: Path) -> None:
    done = rlrun_here(["resume", str(DEFAULT), "total_steps=1200", "device.threads=2"], finished)
    assert done.returncode == 0, done.stderr
    assert "not bit-identical to an undisturbed run from here on: threads was 1, is 2" in done.stderr
    lineage = json.loads((finished / DEFAULT / "run.json").read_text())["lineage"]
    assert lineage[-1] == {"event": "promise dropped", "step": lineage[-1]["step"], "because": ["threads"]}


def test_a_checkpoint_of_other_code_is_named_and_not_half_loaded(finished: Path) -> None:
    checkpoints = Checkpoints(finished / DEFAULT, keep=2)
    step = checkpoints.steps()[-1]
    state, manifest = checkpoints.load(step)
    state["algorithm"]["an attribute of tomorrow"] = torch.zeros(1)
    checkpoints.save(step, state, {"fingerprint": manifest["fingerprint"]})
    done = rlrun_here(["resume", str(DEFAULT), "total_steps=2000"], finished)
    assert done.returncode == 1
    assert "does not fit this version of the code" in done.stderr
    assert "Traceback" not in done.stderr


def test_resume_refuses_what_would_make_two_runs_out_of_one(finished: Path) -> None:
    for override, expected in (("algo.gamma=0.5", "algo.gamma=0.5"), ("total_steps=10", "total_steps=10")):
        done = rlrun_here(["resume", str(DEFAULT), override], finished)
        assert done.returncode == 2
        assert expected in done.stderr
    assert json.loads((finished / DEFAULT / "run.json").read_text())["status"] == "finished"


def test_resume_goes_on_with_a_run_whose_last_iteration_went_beyond_total_steps(finished: Path) -> None:
    assert json.loads((finished / DEFAULT / "result.json").read_text())["steps"] == 1024  # for total_steps=1000
    done = rlrun_here(["resume", str(DEFAULT)], finished)
    assert done.returncode == 0
    assert "is finished" in done.stderr


def test_a_refused_command_costs_a_stored_run_nothing(tmp_path: Path) -> None:
    assert rlrun_here([*SHORT, "name=mine"], tmp_path).returncode == 0
    run = the_run(tmp_path)
    result = (run / "result.json").read_text()
    assert rlrun_here(["resume", str(run), "total_steps=2000", "algo.batch_size=7"], tmp_path).returncode == 2
    assert rlrun_here([*SHORT, "name=mine", "fresh=true", "algo.gamma=1.5"], tmp_path).returncode == 2
    assert rlrun_here(["resume", str(run), "fresh=true"], tmp_path).returncode == 2
    assert (run / "result.json").read_text() == result
    assert not (tmp_path / "outputs" / ".aside").exists()


def test_stop_at_return_ends_early_and_resume_can_lift_it(tmp_path: Path) -> None:
    arguments = [*SHORT, "total_steps=3000", "eval.every=500", "stop.at_return=5", "name=early"]
    assert rlrun_here(arguments, tmp_path).returncode == 0
    run = the_run(tmp_path)
    result = json.loads((run / "result.json").read_text())
    assert result["stopped_early"] == "stop.at_return"
    assert result["steps"] < 3000
    assert rlrun_here(["resume", str(run), "stop.at_return=null"], tmp_path).returncode == 0
    assert json.loads((run / "result.json").read_text())["steps"] >= 3000


def test_stop_after_time_ends_early(tmp_path: Path) -> None:
    done = rlrun_here([*SHORT, "total_steps=1e9", "stop.after_time=1s"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((the_run(tmp_path) / "result.json").read_text())["stopped_early"] == "stop.after_time"


def test_a_loss_that_is_not_finite_halts_the_run_and_keeps_the_batch(tmp_path: Path) -> None:
    done = rlrun_here([*SHORT, "algo.learning_rate=1e30", "name=nan"], tmp_path)
    assert done.returncode == 1
    assert "train/loss=nan" in done.stderr
    assert "rlrun resume" in done.stderr
    run = the_run(tmp_path)
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    stored = torch.load(run / "not_finite.pt", weights_only=True)
    assert stored["batch"]["obs"].shape == (32, 8, 4)


def test_a_third_partys_parts_train_resume_and_evaluate(tmp_path: Path) -> None:
    arguments = [*third_party(), "algo=hill_climbing", "env=corridor", "network=tiny", "eval.final_episodes=2"]
    done = rlrun_here(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/corridor/hill_climbing/network=tiny/seed=0"
    assert run.is_dir()
    assert rlrun(["resume", str(run), "total_steps=3000"], tmp_path).returncode == 0  # knows nothing but the folder
    assert rlrun_here(["eval", str(run), "episodes=2"], tmp_path).returncode == 0


def test_an_exception_in_an_environment_fails_the_run_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    done = rlrun_here([*third_party(), "algo=ppo", "env=corridor", "+env.kwargs.break_at=100", "name=x"], tmp_path)
    assert done.returncode == 1
    run = the_run(tmp_path)
    assert "the corridor collapsed" in (run / "run.log").read_text()
    assert json.loads((run / "run.json").read_text())["status"] == "failed"


def test_python_loads_a_run_and_acts(finished: Path) -> None:
    loaded = package.load(finished / DEFAULT)
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    for _ in range(10):
        action = loaded.act(obs)
        assert action in (0, 1)
        obs, *_ = env.step(action)


def test_a_sweep_runs_all_points_and_one_bad_point_does_not_stop_it(tmp_path: Path) -> None:
    done = rlrun_here(["-m", *SHORT, "algo.gamma=0.9,2,0.95"], tmp_path)
    assert done.returncode == 2
    assert "algo.gamma=2" in done.stderr
    assert "2 of 3 points finished" in done.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert not list(tmp_path.rglob("multirun.yaml"))
    again = rlrun_here(["-m", *SHORT, "algo.gamma=0.9,0.95"], tmp_path)
    assert again.returncode == 0
    assert "2 of 2 points finished" in again.stderr
    stopped = rlrun_here(["-m", *SHORT, "algo.gamma=3,0.97", "on_error=stop"], tmp_path)
    assert stopped.returncode == 2
    assert "1 not run" in stopped.stderr


def test_runs_of_one_sweep_match_runs_of_their_own_process(tmp_path: Path) -> None:
    swept, alone = tmp_path / "swept", tmp_path / "alone"
    swept.mkdir()
    alone.mkdir()
    assert rlrun_here(["-m", *SHORT, "seed=0,1"], swept).returncode == 0
    assert rlrun([*SHORT, "seed=1"], alone).returncode == 0
    assert_identical(swept / DEFAULT.with_name("seed=1"), alone / DEFAULT.with_name("seed=1"))


def test_an_unwritable_outputs_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = rlrun_here([*SHORT, "outputs=file"], tmp_path)
    assert done.returncode == 2
    assert "outputs" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["env=breakout", "--cfg", "job"], ["ls", "."]])
def test_answers_that_train_nothing_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv[1:] = sys.argv[1:]\nfrom rlrun.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'gymnasium', 'tensorboard', 'ale_py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_help_and_the_configuration_answer_in_under_0_8_seconds(tmp_path: Path) -> None:
    for arguments in (["--help"], ["--cfg", "job"]):
        took = min(_processor_seconds(arguments, tmp_path) for _ in range(3))
        assert took < 0.8, f"{arguments}: {took:.2f} s"


def _processor_seconds(arguments: list[str], folder: Path) -> float:
    """Return the processor time of a command: it is single-threaded, and other tests run beside it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert rlrun(arguments, folder).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def third_party() -> list[str]:
    return ["--config-dir", str(Path(__file__).parent / "third_party")]
