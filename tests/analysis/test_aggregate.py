"""Means over seeds as TensorBoard runs: what they say, and that they are never stale."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import rlrun_here
from synthetic import write_rows, write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlrun.analysis import aggregate as module
from rlrun.analysis.aggregate import average, refresh, write_aggregates
from rlrun.errors import UserError
from rlrun.run_folder import find_runs

STEPS = (250, 500, 750, 1000)


def write_seed(outputs: Path, seed: int, *, level: float | None = None, **keywords: Any) -> Path:
    """Write a run whose reward is `level` + step / 10 and whose result is `level`."""
    level = float(seed) if level is None else level
    run = write_run(outputs, seed=seed, final=level, **keywords)
    rows = [
        {"step": s, "eval/mean_reward": level + s / 10, "time/fps": 5.0, "train/nan": None, "time/unix": 1e9 + s + seed}
        for s in STEPS
    ]
    write_rows(run / "metrics.jsonl", rows)
    return run


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Return an outputs folder with seeds 0, 1 and 5."""
    folder = tmp_path / "outputs"
    for seed in (0, 1, 5):
        write_seed(folder, seed)
    return folder


def group(outputs: Path) -> Path:
    return outputs / "cartpole/ppo/default"


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def files(outputs: Path) -> dict[str, tuple[int, bytes]]:
    """Return {path: (when it was written, content)} of all aggregates."""
    found = [path for path in outputs.rglob("*") if path.is_file() and "_seeds" in str(path.parent.parent)]
    return {str(path.relative_to(outputs)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_the_mean_run_holds_the_means_over_seeds(outputs: Path) -> None:
    (done,) = write_aggregates([outputs])
    assert (done.seeds, done.num_tags) == ("3", 2)
    found = scalars(group(outputs) / "3_seeds/mean")
    assert found == {
        "eval/mean_reward": [(step, pytest.approx(2 + step / 10)) for step in STEPS],
        "final/mean_return": [(1000, 2.0)],
    }


def test_the_interval_lies_around_the_mean_and_inside_the_seeds(outputs: Path) -> None:
    write_aggregates([outputs])
    low, mean, high = (scalars(group(outputs) / "3_seeds" / kind) for kind in ("lower95", "mean", "upper95"))
    assert low.keys() == mean.keys() == high.keys()
    for tag, points in mean.items():
        for (step, m), (_, a), (_, b) in zip(points, low[tag], high[tag], strict=True):
            offset = step / 10 if tag == "eval/mean_reward" else 0
            assert offset <= a < m < b <= 5 + offset


def test_the_interval_is_the_bootstrap_of_the_mean_over_seeds() -> None:
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 1, 40)
    _, mean, low, high = average([np.array([[0.0, value], [1.0, value]]) for value in seeds])
    half = 1.96 * seeds.std(ddof=1) / np.sqrt(40)  # what it comes to for many seeds
    assert mean[0] == pytest.approx(seeds.mean())
    assert (low[0], high[0]) == (
        pytest.approx(mean[0] - half, abs=0.2 * half),
        pytest.approx(mean[0] + half, abs=0.2 * half),
    )


def test_curves_with_other_steps_are_interpolated_and_none_goes_on_beyond_its_end() -> None:
    steps, mean, _, _ = average([np.array([[0.0, 0], [10, 10]]), np.array([[5.0, 0], [8, 0], [20, 0]])])
    assert steps.tolist() == [5, 8, 10]
    assert mean.tolist() == [2.5, 4.0, 5.0]


def test_long_curves_are_thinned_to_what_tensorboard_keeps() -> None:
    curve = np.column_stack([np.arange(5000), np.arange(5000)]).astype(float)
    steps, *_ = average([curve, curve])
    assert len(steps) == module.MOST_POINTS
    assert (steps[0], steps[-1]) == (0, 4999)


def test_a_second_time_nothing_is_written(outputs: Path) -> None:
    write_aggregates([outputs])
    before = files(outputs)
    write_aggregates([outputs])
    assert files(outputs) == before
    assert len(before) == 3


def test_the_same_seeds_give_the_same_bytes(outputs: Path, tmp_path: Path) -> None:
    write_aggregates([outputs])
    for seed in (0, 1, 5):
        write_seed(tmp_path / "again", seed)
    write_aggregates([tmp_path / "again"])
    one, other = ([content for _, content in files(root).values()] for root in (outputs, tmp_path / "again"))
    assert sorted(one) == sorted(other)


def test_another_seed_takes_the_place_of_the_old_aggregates(outputs: Path) -> None:
    write_aggregates([outputs])
    write_seed(outputs, 8, level=14.0)
    write_aggregates([outputs])
    assert [path.name for path in group(outputs).glob("*_seeds")] == ["4_seeds"]
    assert scalars(group(outputs) / "4_seeds/mean")["final/mean_return"] == [(1000, 5.0)]


def test_a_seed_that_was_run_anew_replaces_the_file_and_leaves_one(outputs: Path) -> None:
    write_aggregates([outputs])
    run = group(outputs) / "seed=0"
    (run / "result.json").write_text(json.dumps({"mean_return": 9.0, "returns": [9.0], "steps": 1000}))
    write_aggregates([outputs])
    assert scalars(group(outputs) / "3_seeds/mean")["final/mean_return"] == [(1000, 5.0)]
    assert len(files(outputs)) == 3


def test_only_finished_seeds_count_and_the_name_says_how_many_of_how_many(outputs: Path) -> None:
    write_seed(outputs, 7, level=1000.0, status="interrupted")
    (done,) = write_aggregates([outputs])
    assert done.seeds == "3 of 4"
    assert scalars(group(outputs) / "3_of_4_seeds/mean")["final/mean_return"] == [(1000, 2.0)]
    events = EventAccumulator(str(group(outputs) / "3_of_4_seeds/mean")).Reload()
    (about,) = events.Tensors("aggregate")
    assert b"of 3 of 4 seeds: 0, 1, 5." in about.tensor_proto.string_val[0]


def test_one_seed_has_no_mean(tmp_path: Path) -> None:
    write_seed(tmp_path, 0)
    (done,) = write_aggregates([tmp_path])
    assert "fewer than 2" in done.notice
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("keywords", "key"),
    [
        ({"config": {"algo.gamma": 0.5}}, "algo.gamma"),
        ({"protocol": {"id": "CartPole-v1", "max_episode_steps": 99}}, "protocol.max_episode_steps"),
    ],
)
def test_runs_of_different_configurations_are_not_averaged_and_what_was_is_taken_away(
    outputs: Path, keywords: dict[str, Any], key: str
) -> None:
    write_aggregates([outputs])
    write_seed(outputs, 9, **keywords)
    (done,) = write_aggregates([outputs])
    assert key in done.notice
    assert files(outputs) == {}


def test_how_a_run_was_watched_makes_no_other_configuration(outputs: Path) -> None:
    write_seed(outputs, 9, config={"log.every": 7})
    (done,) = write_aggregates([outputs])
    assert done.seeds == "4"


def test_one_run_given_by_its_folder_is_averaged_with_its_siblings(outputs: Path) -> None:
    (done,) = write_aggregates([group(outputs) / "seed=1"])
    assert (done.folder, done.seeds) == (group(outputs), "3")


def test_aggregates_are_not_taken_for_runs_and_go_when_the_runs_have_gone(outputs: Path) -> None:
    write_seed(outputs, 0, variant="other")
    write_aggregates([outputs])
    assert len(find_runs(outputs)) == 4
    for run in find_runs(group(outputs)):
        (run.path / "run.json").unlink()
    write_aggregates([outputs])
    assert files(outputs) == {}


def test_what_a_user_put_into_a_folder_of_that_name_stays(outputs: Path) -> None:
    mine = group(outputs) / "2_seeds"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    write_aggregates([outputs])
    assert (mine / "notes.txt").exists()


def test_a_kill_leaves_no_half_an_event_file(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", die)
        with pytest.raises(KeyboardInterrupt):
            write_aggregates([outputs])
    assert not list(group(outputs).glob("*_seeds/**/*tfevents*"))
    write_aggregates([outputs])
    assert len(files(outputs)) == 3


def test_the_end_of_a_sweep_is_not_changed_by_what_cannot_be_averaged(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh([group(outputs), tmp_path / "nowhere"])
    assert len(files(outputs)) == 3

    def full(path: Path, content: bytes) -> None:
        raise OSError("no space")

    monkeypatch.setattr(module, "write_atomically", full)
    write_seed(outputs, 8)
    refresh([group(outputs)])
    assert "no means over seeds for TensorBoard: no space" in capsys.readouterr().err


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no runs"):
        write_aggregates([tmp_path])


# --- The command line -----------------------------------------------------------------------------------


def test_the_command_says_what_it_averaged(outputs: Path) -> None:
    done = rlrun_here(["aggregate"], outputs.parent)
    assert done.returncode == 0, done.stderr
    assert "cartpole/ppo/default" in done.stdout
    assert "tensorboard --logdir outputs" in done.stdout
    assert "fewer than 5 seeds" in done.stderr
    assert rlrun_here(["ls"], outputs.parent).stdout.count("seed=") == 3


def test_torch_is_not_imported() -> None:
    code = "import sys, rlrun.analysis.aggregate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["aggregate"], "needs PATHS"),
        (["aggregate", "nowhere"], "does not exist"),
        (["aggregate", "by=algo"], "has no key by. It takes no keys, only paths\n"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: list[str], answer: str, tmp_path: Path) -> None:
    done = rlrun_here(arguments, tmp_path)
    assert done.returncode == 2
    assert answer in done.stderr
    assert not list(tmp_path.iterdir())
