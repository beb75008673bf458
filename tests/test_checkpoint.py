import errno
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlrun import files
from rlrun.checkpoint import CheckpointError, Checkpoints
from rlrun.errors import RunFailed


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, keep=2)


def state(step: int) -> dict[str, Any]:
    return {"steps": step, "weights": torch.full((100,), float(step)), "nested": [{"x": (1, "a", None)}]}


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, state(step), {"note": f"at {step}"})


def step_of(found: tuple[dict[str, Any], dict[str, Any]] | None) -> int | None:
    return None if found is None else int(found[0]["steps"])


def newest(checkpoints: Checkpoints) -> tuple[int | None, list[str]]:
    """Return the step of the newest usable checkpoint, and what was reported on the way."""
    reports: list[str] = []
    return step_of(checkpoints.newest(reports.append)), reports


def forge(checkpoints: Checkpoints, name: str, content: bytes, **facts: Any) -> None:
    """Put bytes in a checkpoint's place, with a manifest that vouches for them."""
    manifest = json.loads((checkpoints.folder / f"{name}.json").read_text())
    manifest |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), **facts}
    (checkpoints.folder / f"{name}.pt").write_bytes(content)
    (checkpoints.folder / f"{name}.json").write_text(json.dumps(manifest))


# --- What is saved --------------------------------------------------------------------------------------


def test_what_was_saved_comes_back_with_its_facts(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    loaded, manifest = checkpoints.load(10)
    assert torch.equal(loaded["weights"], state(10)["weights"])
    assert loaded["nested"] == state(10)["nested"]
    assert (manifest["step"], manifest["note"]) == (10, "at 10")


def test_the_manifest_is_readable_without_torch_and_states_size_and_checksum(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    manifest = json.loads((checkpoints.folder / "step-10.json").read_text())
    content = (checkpoints.folder / "step-10.pt").read_bytes()
    assert manifest["bytes"] == len(content)
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()


def test_an_empty_folder_has_no_checkpoint(checkpoints: Checkpoints) -> None:
    assert newest(checkpoints) == (None, [])
    with pytest.raises(CheckpointError, match="no best policy"):
        checkpoints.load_best()


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    save(checkpoints, 900, 1000, 10_000)
    assert checkpoints.steps() == [900, 1000, 10_000]
    assert newest(checkpoints) == (10_000, [])


def test_saving_leaves_nothing_half_done_behind(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, 2, 3)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [
        "step-2.json",
        "step-2.pt",
        "step-3.json",
        "step-3.pt",
    ]


# --- What is not believed -------------------------------------------------------------------------------


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def torch_pickle(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("dump", [pickle.dumps, torch_pickle, lambda v: torch_pickle({"steps": 20, "x": [v]})])
def test_a_hostile_pickle_does_not_run_even_with_the_right_checksum(
    dump: Callable[[Any], bytes], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    save(checkpoints, 10, 20)
    forge(checkpoints, "step-20", dump(Hostile(tmp_path / "it_ran")))
    step, reports = newest(checkpoints)
    assert step == 10
    assert len(reports) == 1
    assert "step-20.pt" in reports[0]
    assert "plain data" in reports[0]
    assert not (tmp_path / "it_ran").exists()


def test_a_hostile_best_policy_does_not_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save_best(5, {"policy": {}}, {})
    forge(checkpoints, "best-5", torch_pickle(Hostile(tmp_path / "it_ran")))
    with pytest.raises(CheckpointError, match=r"best-5\.pt"):
        checkpoints.load_best()
    assert not (tmp_path / "it_ran").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [truncate, flip_a_bit, empty, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_by_name_and_the_one_before_is_used(
    damage: Callable[[Path], None], checkpoints: Checkpoints
) -> None:
    save(checkpoints, 10, 20)
    damage(checkpoints.folder / "step-20.pt")
    step, reports = newest(checkpoints)
    assert step == 10
    assert len(reports) == 1
    assert "20" in reports[0]


@pytest.mark.parametrize("text", ["", "{", "{}", "null", "[]", '"x"', "\xff"])
def test_a_damaged_manifest_counts_as_a_damaged_checkpoint(text: str, checkpoints: Checkpoints) -> None:
    save(checkpoints, 10, 20)
    (checkpoints.folder / "step-20.json").write_bytes(text.encode("latin-1"))
    step, reports = newest(checkpoints)
    assert step == 10
    assert "20" in reports[0]


def test_a_file_without_a_manifest_does_not_count(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10, 20)
    (checkpoints.folder / "step-20.json").unlink()
    assert newest(checkpoints) == (10, [])


def test_when_every_checkpoint_is_damaged_each_is_reported_and_none_is_used(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10, 20)
    for step in (10, 20):
        truncate(checkpoints.folder / f"step-{step}.pt")
    reports: list[str] = []
    with pytest.raises(RunFailed, match="no checkpoint that can be used"):
        checkpoints.newest(reports.append)
    assert ["10" in reports[1], "20" in reports[0]] == [True, True]
    assert checkpoints.steps() == [10, 20]  # and nothing is thrown away


def test_a_damaged_checkpoint_is_set_aside_and_reported_once(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10, 20)
    truncate(checkpoints.folder / "step-20.pt")
    newest(checkpoints)
    assert checkpoints.steps() == [10]
    assert (checkpoints.folder / "step-20.pt.corrupt").exists()
    assert newest(checkpoints) == (10, [])
    save(checkpoints, 20)
    assert newest(checkpoints) == (20, [])


def test_another_schema_is_refused_by_name(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    content = (checkpoints.folder / "step-10.pt").read_bytes()
    forge(checkpoints, "step-10", content, schema=999)
    with pytest.raises(RunFailed, match="schema 999"):
        checkpoints.load(10)


def test_a_manifest_without_a_schema_is_refused_and_not_a_crash(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10, 20)
    path = checkpoints.folder / "step-20.json"
    manifest = json.loads(path.read_text())
    del manifest["schema"]
    path.write_text(json.dumps(manifest))
    assert newest(checkpoints)[0] == 10


# --- What is kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_so_many_are_kept(keep: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(10, 70, 10):
        save(checkpoints, step)
        assert checkpoints.steps() == list(range(10, step + 10, 10))[-keep:]
    assert len(list(checkpoints.folder.glob("*.pt"))) == keep


def best(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save_best(step, {"steps": step}, {})


def test_the_best_policy_as_of_each_kept_checkpoint_is_kept(checkpoints: Checkpoints) -> None:
    best(checkpoints, 5)
    save(checkpoints, 10)
    best(checkpoints, 15)
    save(checkpoints, 20)
    assert checkpoints.best_steps() == [5, 15]  # going back to 10 needs 5
    save(checkpoints, 30)
    assert checkpoints.best_steps() == [15]  # 20 and 30 both need 15
    best(checkpoints, 35, 38)
    save(checkpoints, 40)
    assert checkpoints.best_steps() == [15, 35, 38]
    save(checkpoints, 50)
    assert checkpoints.best_steps() == [38]


def test_the_only_best_policy_is_never_removed(checkpoints: Checkpoints) -> None:
    best(checkpoints, 5)
    save(checkpoints, *range(10, 100, 10))
    assert step_of(checkpoints.load_best()) == 5


def test_best_policies_that_the_restored_run_has_not_found_yet_are_forgotten(checkpoints: Checkpoints) -> None:
    best(checkpoints, 10, 20, 30)
    checkpoints.discard_best_after(20)
    assert checkpoints.best_steps() == [10, 20]
    assert step_of(checkpoints.load_best()) == 20


# --- A full disk, and a kill in between -----------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that lets so many files be synced and then fills the disk."""

    def fill_after(files_left: int) -> None:
        left = [files_left]
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if left[0] == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            left[0] -= 1
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return fill_after


@pytest.mark.parametrize("files_left", [0, 1])
def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_how_much_was_needed(
    files_left: int, full_disk: Callable[[int], None], checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 10, 20)
    full_disk(files_left)  # none: the state itself fails; one: its manifest does
    with pytest.raises(RunFailed, match=r"step-30\.(pt|json) needs [\d.]+ K?B of disk and [\d.]+ [KMGT]?B are free"):
        save(checkpoints, 30)
    monkeypatch.undo()
    assert newest(checkpoints) == (20, [])
    assert checkpoints.steps() == [10, 20]
    assert not list(checkpoints.folder.glob("*.tmp"))
    save(checkpoints, 30)
    assert newest(checkpoints) == (30, [])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_full_disk_is_explained(
    code: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 10)

    def no_room(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(RunFailed, match="make room"):
        save(checkpoints, 20)


def test_other_errors_of_the_disk_are_not_taken_for_a_full_one(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        save(checkpoints, 10)


class Killed(BaseException):
    pass


def run_until_killed(action: Callable[[], None], survived: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run the action and kill it at its n-th change to the disk's names; return whether it was killed."""
    left = [survived]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            action()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("keep", [1, 2])
def test_wherever_a_save_is_killed_a_checkpoint_remains(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for survived in range(20):
        checkpoints = Checkpoints(tmp_path / str(survived), keep)
        checkpoints.folder.parent.mkdir()
        save(checkpoints, *[10, 20][-keep:])
        best(checkpoints, 5)
        killed = run_until_killed(lambda: save(checkpoints, 30), survived, monkeypatch)  # noqa: B023
        step, reports = newest(checkpoints)
        assert step == (20 if survived < 2 else 30)
        assert reports == []
        assert step_of(checkpoints.load_best()) == 5
        if not killed:
            return
    raise AssertionError("a save changes more names than expected")


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_while_the_same_step_is_saved_again_does_not_lose_it(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run saves its last step at the boundary and at the end, with an evaluation in between."""
    checkpoints = Checkpoints(tmp_path, keep)
    save(checkpoints, 10)
    other = {**state(10), "evaluated": True}
    assert run_until_killed(lambda: checkpoints.save(10, other, {}), 1, monkeypatch)
    assert newest(checkpoints) == (10, [])


def test_files_are_synced_before_they_take_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append("sync")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_atomically(tmp_path / "x", b"content")
    assert events == ["sync", "rename", "sync"]  # the file, its name, and the folder that holds the name
    assert (tmp_path / "x").read_bytes() == b"content"
