import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlrun.errors import RunFailed
from rlrun.event_file import png_size
from rlrun.logger import EPISODES, EVALUATIONS, METRICS, Logger, read_rows


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[Logger]:
    logger = Logger(tmp_path, tensorboard=True)
    yield logger
    logger.close()


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return {tag: [(step, value)]} as TensorBoard itself reads the folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def metrics_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the same out of metrics.jsonl."""
    scalars: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(folder / METRICS):
        for tag, value in row.items():
            if tag not in ("step", "time/unix") and value is not None:
                scalars.setdefault(tag, []).append((row["step"], float(np.float32(value))))
    return scalars


def write(logger: Logger, *steps: int) -> None:
    for step in steps:
        logger.episode({"step": step, "return": 1.0})
        logger.metrics(step, {"train/loss": 1 / step, "rollout/ep_rew_mean": step * 0.1, "time/fps": 100.0})
        if step % 20 == 0:
            logger.evaluation({"step": step, "mean_return": float(step)})
            logger.metrics(step, {"eval/mean_reward": float(step)})


def contents(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all rows but for what depends on the clock."""
    return {
        name: [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_rows(folder / name)]
        for name in (METRICS, EPISODES, EVALUATIONS)
    }


def test_rows_are_keyed_by_step_and_tensors_become_numbers(logger: Logger, tmp_path: Path) -> None:
    values = {"b": torch.tensor(2.5), "a": 1, "c": np.float64(0.5)}
    row = logger.metrics(7, values)
    assert {k: v for k, v in row.items() if k != "time/unix"} == {"step": 7, "a": 1, "b": 2.5, "c": 0.5}
    assert read_rows(tmp_path / METRICS) == [row]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null_in_the_file_and_absent_in_tensorboard(
    value: float, logger: Logger, tmp_path: Path
) -> None:
    logger.metrics(1, {"bad": torch.tensor(value), "good": 1.0})
    line = (tmp_path / METRICS).read_text()
    assert json.loads(line, parse_constant=pytest.fail)["bad"] is None
    assert tensorboard_scalars(tmp_path) == {"good": [(1, 1.0)]}


def test_tensorboard_shows_exactly_what_metrics_holds(logger: Logger, tmp_path: Path) -> None:
    write(logger, *range(10, 110, 10))
    assert tensorboard_scalars(tmp_path) == metrics_scalars(tmp_path)


def test_after_a_cut_tensorboard_shows_exactly_what_is_left(logger: Logger, tmp_path: Path) -> None:
    write(logger, 10, 20, 30)
    state = logger.state_dict()
    write(logger, 40, 50, 60)
    logger.load_state_dict(state)
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == [10, 20, 20, 30]
    assert tensorboard_scalars(tmp_path) == metrics_scalars(tmp_path)
    write(logger, 40)
    assert tensorboard_scalars(tmp_path) == metrics_scalars(tmp_path)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_a_run_that_is_cut_back_and_goes_on_has_the_files_of_an_undisturbed_one(tmp_path: Path) -> None:
    folders = [tmp_path / "undisturbed", tmp_path / "interrupted"]
    for folder in folders:
        folder.mkdir()
    undisturbed = Logger(folders[0], tensorboard=True)
    write(undisturbed, 10, 20, 30, 40, 50)
    undisturbed.close()

    killed = Logger(folders[1], tensorboard=True)
    write(killed, 10, 20)
    state = killed.state_dict()
    write(killed, 30, 40)
    killed.close()
    with open(folders[1] / METRICS, "ab") as file:
        file.write(b'{"step": 50, "tra')  # what a kill leaves
    resumed = Logger(folders[1], tensorboard=True)
    resumed.load_state_dict(state)
    write(resumed, 30, 40, 50)
    resumed.close()
    assert contents(folders[0]) == contents(folders[1])
    assert tensorboard_scalars(folders[0]) == tensorboard_scalars(folders[1])


def test_without_a_checkpoint_the_files_are_cut_back_to_nothing(logger: Logger, tmp_path: Path) -> None:
    write(logger, 10, 20)
    logger.load_state_dict({})
    assert all(rows == [] for rows in contents(tmp_path).values())
    assert tensorboard_scalars(tmp_path) == {}


def test_the_state_counts_what_is_on_disk(logger: Logger, tmp_path: Path) -> None:
    logger.episode({"step": 1, "return": 1.0})  # not flushed by itself
    state = logger.state_dict()
    lengths = {name: (tmp_path / name).stat().st_size for name in (METRICS, EPISODES, EVALUATIONS)}
    assert state == {**lengths, "images": {}}
    assert state[EPISODES] > 0


def test_the_logs_are_on_disk_before_the_state_is_returned(logger: Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor)))
    logger.state_dict()
    assert len(set(synced)) == 3


def test_a_log_that_was_shortened_from_outside_is_refused_by_name(logger: Logger, tmp_path: Path) -> None:
    write(logger, 10, 20)
    state = logger.state_dict()
    (tmp_path / METRICS).write_bytes(b"")
    with pytest.raises(RunFailed, match=METRICS):
        logger.load_state_dict(state)


def test_a_new_session_appends_to_what_is_there(tmp_path: Path) -> None:
    first = Logger(tmp_path, tensorboard=False)
    write(first, 10)
    state = first.state_dict()
    first.close()
    second = Logger(tmp_path, tensorboard=False)
    assert second.state_dict() == state
    write(second, 20)
    second.close()
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == [10, 20, 20]


def test_without_tensorboard_there_is_no_event_file(tmp_path: Path) -> None:
    logger = Logger(tmp_path, tensorboard=False)
    write(logger, 10)
    logger.load_state_dict(logger.state_dict())
    logger.close()
    assert not list(tmp_path.glob("events.*"))


def test_a_line_that_was_not_finished_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_everything_that_depends_on_the_clock_has_a_key_under_time(logger: Logger) -> None:
    row = logger.metrics(1, {"train/loss": 0.5})
    assert row.keys() - {"step", "train/loss"} == {"time/unix"}


def test_a_full_disk_is_explained_when_it_is_the_log_that_does_not_fit(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    (tmp_path / METRICS).symlink_to("/dev/full")
    logger = Logger(tmp_path, tensorboard=False)
    with pytest.raises(RunFailed, match="make room"):
        logger.metrics(1, {"train/loss": 0.5})


def picture(shade: int, width: int = 5, height: int = 3) -> bytes:
    """Return a PNG of one grey."""
    buffer = io.BytesIO()
    Image.new("L", (width, height), shade).save(buffer, "PNG")
    return buffer.getvalue()


def tensorboard_images(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Return {tag: [(step, PNG)]} as TensorBoard itself reads the folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    images = {tag: accumulator.Images(tag) for tag in accumulator.Tags()["images"]}
    return {tag: [(e.step, e.encoded_image_string) for e in events] for tag, events in images.items()}


def test_an_image_is_a_file_named_by_tag_and_step_and_is_in_tensorboard(logger: Logger, tmp_path: Path) -> None:
    one, two, three = map(picture, (10, 20, 30))
    logger.image(10, "policy/greedy", one)
    logger.image(20, "policy/greedy", two)
    (tmp_path / "elsewhere.png").write_bytes(three)
    logger.image(20, "map", tmp_path / "elsewhere.png")
    assert (tmp_path / "images/policy/greedy-20.png").read_bytes() == two
    assert (tmp_path / "images/map-20.png").read_bytes() == three
    assert tensorboard_images(tmp_path) == {"policy/greedy": [(10, one), (20, two)], "map": [(20, three)]}


def test_after_a_resume_images_are_there_up_to_the_restored_step_and_no_further(tmp_path: Path) -> None:
    before = Logger(tmp_path, tensorboard=True)
    write(before, 10)
    before.image(10, "policy", picture(10))
    write(before, 20)
    state = json.loads(json.dumps(before.state_dict()))
    before.image(20, "values", picture(21))  # after the checkpoint of the same step
    write(before, 30)
    before.image(30, "policy", picture(30))
    before.close()

    resumed = Logger(tmp_path, tensorboard=True)
    resumed.load_state_dict(state)
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["policy-10.png"]
    assert tensorboard_images(tmp_path) == {"policy": [(10, picture(10))]}
    assert tensorboard_scalars(tmp_path) == metrics_scalars(tmp_path)
    resumed.image(20, "values", picture(21))
    write(resumed, 30)
    resumed.image(30, "policy", picture(30))
    assert resumed.state_dict()["images"] == {"policy": 30, "values": 20}
    resumed.close()
    assert tensorboard_images(tmp_path) == {
        "policy": [(10, picture(10)), (30, picture(30))],
        "values": [(20, picture(21))],
    }


def test_a_state_from_before_there_were_images_drops_them_all(logger: Logger, tmp_path: Path) -> None:
    logger.image(10, "policy", picture(1))
    logger.load_state_dict({})
    assert not list(tmp_path.rglob("*.png"))
    assert tensorboard_images(tmp_path) == {}


def test_a_file_of_the_users_own_among_the_images_is_left_alone(logger: Logger, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.png").write_bytes(picture(1))
    logger.load_state_dict({})
    assert (tmp_path / "images/mine.png").exists()
    assert tensorboard_images(tmp_path) == {}


def test_what_is_no_picture_is_refused_and_leaves_nothing(logger: Logger, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no PNG"):
        logger.image(1, "policy", b"GIF89a")
    assert not (tmp_path / "images").exists()


def test_the_size_of_a_png_is_read_from_its_header() -> None:
    assert png_size(picture(0, width=300, height=7)) == (300, 7)
