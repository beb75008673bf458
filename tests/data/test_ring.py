import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrun.data.ring import CHUNK, Field, Ring
from rlrun.errors import RunFailed, UserError

FIELDS = {"number": Field(np.dtype(np.int64)), "frame": Field(np.dtype(np.uint8), (2, 3))}
Disk = Callable[[Any], Any]


def make_ring(folder: Path | None, **numbers: int) -> Ring:
    settings = {"num_streams": 2, "capacity": 50, "reach": 3, "slack": 40, "burst": 9, **numbers}
    return Ring(folder, FIELDS, **settings)


def frame_of(numbers: np.ndarray) -> np.ndarray:
    """Return a picture that tells records apart."""
    return (numbers[..., None, None] * 7 + np.arange(6).reshape(2, 3)).astype(np.uint8)


def append(ring: Ring, count: int, streams: tuple[int, ...] = (0, 1)) -> None:
    """Append `count` records to each stream; a record's number tells its stream and its place there."""
    for _ in range(count):
        numbers = np.array([stream * 10**6 + ring.head[stream] for stream in streams])
        ring.append(np.array(streams), number=numbers, frame=frame_of(numbers))


def holds_what_was_written(ring: Ring) -> bool:
    """Say whether all records that a reader may look at are there, found by each way of reading."""
    for stream in range(ring.num_streams):
        records = np.arange(max(int(ring.tail[stream]) - ring.reach, 0), int(ring.head[stream]))
        positions = ring.position(np.array(stream), records)
        numbers = stream * 10**6 + records
        into = np.empty((len(records), 2, 3), np.uint8)
        ring.read_into("frame", positions, into)
        if not (
            np.array_equal(ring.read("number", positions), numbers)
            and np.array_equal(ring.read("frame", positions), frame_of(numbers))
            and np.array_equal(into, frame_of(numbers))
        ):
            return False
    return True


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 112, 113, 1000])
def test_records_within_reach_are_found_however_often_the_ring_has_wrapped(
    count: int, small_chunks: None, tmp_path: Path
) -> None:
    ring = make_ring(tmp_path / "replay")
    append(ring, count)
    assert ring.head.tolist() == [count, count]
    assert ring.tail.tolist() == [max(count - 50, 0)] * 2
    assert holds_what_was_written(ring)


def test_streams_grow_on_their_own(small_chunks: None, tmp_path: Path) -> None:
    ring = make_ring(tmp_path / "replay", num_streams=3)
    dice = random.Random(0)
    for _ in range(400):
        append(ring, 1, tuple(sorted(dice.sample(range(3), dice.randint(1, 3)))))
    assert len(set(ring.head.tolist())) == 3
    assert ring.head.min() > ring.slots
    assert holds_what_was_written(ring)


@pytest.mark.parametrize(("capacity", "reach", "slack"), [(1, 1, 0), (50, 3, 40), (1000, 4, 20), (1024, 0, 0)])
def test_there_is_room_for_capacity_reach_and_slack_and_the_rest_of_a_chunk(
    capacity: int, reach: int, slack: int
) -> None:
    ring = make_ring(None, capacity=capacity, reach=reach, slack=slack)
    assert ring.slots % CHUNK == 0
    # To check the oldest record its whole chunk must be there: up to CHUNK - 1 records more.
    assert capacity + reach + slack + CHUNK <= ring.slots < capacity + reach + slack + 2 * CHUNK


# --- Files ----------------------------------------------------------------------------------------------


def test_reserving_makes_files_of_their_full_size_whose_blocks_exist(tmp_path: Path) -> None:
    ring = make_ring(tmp_path / "a" / "replay", capacity=5000)
    assert not (tmp_path / "a").exists()
    assert ring.missing_bytes() == ring.nbytes == 2 * ring.slots * (8 + 6)
    ring.reserve()
    assert ring.missing_bytes() == 0
    for name, width in (("number", 8), ("frame", 6)):
        stat = (ring.folder / f"{name}.bin").stat()
        assert stat.st_size == 2 * ring.slots * width
        assert stat.st_blocks * 512 >= stat.st_size


def test_reserving_again_keeps_what_the_files_hold(small_chunks: None, tmp_path: Path) -> None:
    ring = make_ring(tmp_path)
    append(ring, 30)
    ring.reserve()
    assert holds_what_was_written(ring)


def test_files_of_another_size_are_made_to_fit(tmp_path: Path) -> None:
    make_ring(tmp_path, capacity=5000).reserve()
    ring = make_ring(tmp_path, capacity=50)
    append(ring, 10)
    assert (tmp_path / "number.bin").stat().st_size == 2 * ring.slots * 8
    assert holds_what_was_written(ring)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_without_room_is_named_before_the_run(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"algo\.buffer_size=100 needs .*B in .*replay.*outputs=") as caught:
        make_ring(tmp_path / "replay").reserve()
    assert str(tmp_path) in str(caught.value)


def test_any_other_error_of_the_disk_is_not_taken_for_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="Input/output"):
        make_ring(tmp_path).reserve()


@pytest.mark.parametrize("missing", [True, False])
def test_where_blocks_cannot_be_reserved_the_files_are_made_all_the_same(
    missing: bool, small_chunks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if missing:  # macOS
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    ring = make_ring(tmp_path)
    append(ring, 200)
    assert holds_what_was_written(ring)


def test_a_ring_without_a_folder_leaves_nothing_behind(small_chunks: None) -> None:
    ring = make_ring(None)
    append(ring, 10)
    folder = ring.folder
    assert (folder / "number.bin").exists()
    del ring
    assert not folder.exists()


def test_a_ring_exists_if_all_its_files_do(tmp_path: Path) -> None:
    ring = make_ring(tmp_path / "replay" / "0")
    assert not ring.exists()
    ring.reserve()
    assert ring.exists()
    (tmp_path / "replay" / "0" / "frame.bin").unlink()
    assert not ring.exists()


# --- State ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [1, 16, 50, 117, 1000, 1008])
def test_a_stream_is_cut_back_to_the_checkpoint_though_more_was_written(
    before: int, small_chunks: None, tmp_path: Path, through_disk: Disk
) -> None:
    ring = make_ring(tmp_path)
    append(ring, before)
    state = through_disk(ring.state_dict())
    append(ring, 40)  # all of the slack

    restored = make_ring(tmp_path)
    restored.load_state_dict(state)
    assert restored.head.tolist() == [before, before]
    assert not restored.must_save()
    assert holds_what_was_written(restored)
    append(restored, 77)
    assert holds_what_was_written(restored)


def test_a_checkpoint_before_the_first_record_begins_anew(tmp_path: Path, through_disk: Disk) -> None:
    state = through_disk(make_ring(tmp_path).state_dict())
    ring = make_ring(tmp_path)
    ring.load_state_dict(state)
    append(ring, 5)
    assert holds_what_was_written(ring)


def test_a_checkpoint_keeps_the_slots_that_it_was_written_with(
    small_chunks: None, tmp_path: Path, through_disk: Disk
) -> None:
    ring = make_ring(tmp_path, slack=40)
    append(ring, 500)
    state = through_disk(ring.state_dict())
    other = make_ring(tmp_path, slack=400)  # another checkpoint.every
    other.load_state_dict(state)
    assert other.slots == ring.slots
    append(other, 300)
    assert holds_what_was_written(other)


def test_what_was_overwritten_since_is_refused(small_chunks: None, tmp_path: Path, through_disk: Disk) -> None:
    ring = make_ring(tmp_path)
    append(ring, 500)
    state = through_disk(ring.state_dict())
    append(ring, ring.slots - 50 - 3 + 1)  # beyond the slack: the oldest record is gone
    with pytest.raises(RunFailed, match=r"number\.bin.*not those of the checkpoint.*fresh=true"):
        make_ring(tmp_path).load_state_dict(state)


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("back", [1, 17, 50, 53], ids=["newest", "middle", "oldest", "oldest in reach"])
@pytest.mark.parametrize("total", [53, 500])
def test_a_damaged_byte_is_found_and_its_file_named(
    total: int, back: int, stream: int, small_chunks: None, tmp_path: Path, through_disk: Disk
) -> None:
    ring = make_ring(tmp_path)
    append(ring, total)
    state = through_disk(ring.state_dict())
    slot = int(ring.position(np.array(stream), np.array(total - back)))
    flip(tmp_path / "frame.bin", slot * 6 + 5)
    with pytest.raises(RunFailed, match=r"frame\.bin: records .* fresh=true"):
        make_ring(tmp_path).load_state_dict(state)


def test_a_damaged_byte_out_of_reach_does_not_matter(small_chunks: None, tmp_path: Path, through_disk: Disk) -> None:
    ring = make_ring(tmp_path)
    append(ring, 500)
    state = through_disk(ring.state_dict())
    for record in (500, 510, 500 - 53 - 16):  # slack, and a chunk that nothing reaches into any more
        flip(tmp_path / "frame.bin", int(ring.position(np.array(0), np.array(record))) * 6)
    restored = make_ring(tmp_path)
    restored.load_state_dict(state)
    assert holds_what_was_written(restored)


@pytest.mark.parametrize("damage", ["no folder", "no file", "half a file"])
def test_missing_files_are_explained(damage: str, small_chunks: None, tmp_path: Path, through_disk: Disk) -> None:
    ring = make_ring(tmp_path / "replay")
    append(ring, 30)
    state = through_disk(ring.state_dict())
    path = tmp_path / "replay" / "frame.bin"
    if damage == "no folder":
        shutil.rmtree(ring.folder)
    elif damage == "no file":
        path.unlink()
    else:
        os.truncate(path, 100)
    with pytest.raises(RunFailed, match=r"replay.*checkpoint\.keep_replay=true"):
        make_ring(tmp_path / "replay").load_state_dict(state)


def test_saving_often_or_seldom_gives_the_same_state(small_chunks: None, tmp_path: Path) -> None:
    """Checksums go on where the last checkpoint left them; that must not show."""
    dice, states = random.Random(1), []
    often, seldom = make_ring(tmp_path / "often"), make_ring(tmp_path / "seldom")
    for _ in range(120):
        count = dice.randint(0, 9)
        append(often, count)
        append(seldom, count)
        often.state_dict()
        if int((seldom.head - seldom._saved).max()) > 60:
            seldom.state_dict()
    for ring in (often, seldom):
        state = ring.state_dict()
        first, last = (int(ring.tail[0]) - 3) // 16, int(ring.head[0] - 1) // 16
        chunks = [chunk % (ring.slots // 16) for chunk in range(first, last + 1)]
        states.append({name: sums[:, chunks].tolist() for name, sums in state["checksums"].items()})
    assert states[0] == states[1]


def bursts_of(kind: str, dice: random.Random, longest: int) -> int:
    """Return how many records one iteration adds, `longest` at most."""
    return {
        "equal": longest,
        "any": dice.randint(0, longest),
        "mostly short": longest if dice.random() < 0.1 else 1,
    }[kind]


@pytest.mark.parametrize("kind", ["equal", "any", "mostly short"])
@pytest.mark.parametrize(("slack", "longest"), [(40, 3), (40, 9), (100, 17), (222, 31)])
def test_the_last_two_checkpoints_can_always_be_gone_back_to(
    slack: int, longest: int, kind: str, small_chunks: None, tmp_path: Path
) -> None:
    """Whatever is appended, if the run saves where it is told to, and also where it likes to."""
    dice = random.Random(f"{slack} {longest} {kind}")
    numbers = {"num_streams": 1, "slack": slack, "burst": longest}
    ring, saves, bursts = make_ring(tmp_path, **numbers), 0, 0
    states: list[dict[str, Any]] = []
    while ring.head[0] < 3 * ring.slots:
        append(ring, bursts_of(kind, dice, longest), (0,))
        bursts += 1
        for state in states[-2:]:  # killed here, and perhaps the last checkpoint is corrupt
            make_ring(tmp_path, **numbers).load_state_dict(state)
        if ring.must_save() or dice.random() < 0.02:
            states.append(ring.state_dict())
            saves += 1
    assert saves < bursts / 1.5  # it asks when it must, not always


def test_nothing_new_needs_no_checkpoint(small_chunks: None, tmp_path: Path) -> None:
    ring = make_ring(tmp_path)
    assert not ring.must_save()
    append(ring, 3)
    assert not ring.must_save()  # as long as a burst of 9 still has room
    for _ in range(1000):
        append(ring, 3)
        if ring.must_save():
            break
    assert ring.must_save()
    ring.state_dict()
    assert not ring.must_save()
