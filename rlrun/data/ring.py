"""Streams of records in memory-mapped files, of which a checkpoint has to write only what is new.

A stream is what one environment experienced, record after record. Records are numbered for ever: record i
lies in slot i mod `slots`. The newest `capacity` are within reach; the slots beyond that are slack. After
a kill the stream is cut back to the checkpoint's length, and because whatever was written in the meantime
went into the slack, everything that the checkpoint could reach is still there: nothing has to be copied
into checkpoints. S streams.
"""

import errno
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlrun.envs.base import Array
from rlrun.errors import RunFailed, UserError
from rlrun.files import DISK_FULL, human_bytes, scratch_prefix

CHUNK = 1024  # records under one checksum


@dataclass(frozen=True)
class Field:
    """One array of each record."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


class Ring:
    """`num_streams` streams, each with room for `slots` records.

    slots >= capacity + reach + slack, a multiple of CHUNK. `reach` is how far behind the oldest record
    within `capacity` a reader may look (frame stacks); `burst` is the most records that a stream gets
    between two looks at `must_save`. `folder` None: a temporary one, which goes with the object
    (benchmarks, tests).
    """

    def __init__(
        self,
        folder: Path | None,
        fields: Mapping[str, Field],
        num_streams: int,
        *,
        capacity: int,
        reach: int,
        slack: int,
        burst: int,
    ) -> None:
        self.fields, self.num_streams = dict(fields), num_streams
        self.capacity, self.reach, self.burst = capacity, reach, burst
        # One chunk more, because the one that holds the oldest record must be whole to be checked.
        self.slots = CHUNK * (-(-(capacity + reach + slack) // CHUNK) + 1)
        self._temporary = tempfile.TemporaryDirectory(prefix=scratch_prefix("replay")) if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else folder
        self.head: Array = np.zeros(num_streams, np.int64)  # [S], the number of records so far
        self._saved: Array = np.zeros(num_streams, np.int64)  # [S], head at the last checkpoint
        self._checksums = {name: np.zeros((num_streams, self.slots // CHUNK), np.int64) for name in self.fields}
        self._maps: dict[str, Array] = {}
        self._flat: dict[str, Array] = {}

    @property
    def nbytes(self) -> int:
        """Return the size of the files."""
        return self.num_streams * self.slots * sum(field.nbytes for field in self.fields.values())

    @property
    def checkpoint_bytes(self) -> int:
        """Return what the checksums take in a checkpoint."""
        return sum(sums.nbytes for sums in self._checksums.values())

    @property
    def tail(self) -> Array:
        """Return the oldest record within reach of each stream, [S]."""
        return np.maximum(self.head - self.capacity, 0)

    def append(self, streams: Array, **values: Any) -> None:
        """Add one record to each of `streams`: [K] int; values: [K, *shape] for every field."""
        if not self._maps:
            self.reserve()
        slots = self.head[streams] % self.slots
        for name, value in values.items():
            self._maps[name][streams, slots] = value
        self.head[streams] += 1

    def position(self, streams: Array, records: Array) -> Array:
        """Return where records lie: flat positions for `read`, of the shape that the two broadcast to."""
        return streams * self.slots + records % self.slots

    def read(self, name: str, positions: Array) -> Array:
        """Return a copy of one field of the records at flat positions: [..., *shape]."""
        return self._flat[name][positions]

    def read_into(self, name: str, positions: Array, out: Array) -> None:
        """Copy one field of the records at `positions`: [N] into out: [N, *shape]."""
        np.take(self._flat[name], positions, axis=0, out=out, mode="clip")

    def must_save(self) -> bool:
        """Say whether a checkpoint is due lest the next records overwrite what the last one reaches.

        Half of the slack is for the checkpoint before the last, which is used if the last is corrupt.
        """
        slack = self.slots - CHUNK - self.capacity - self.reach
        return int((self.head - self._saved).max()) + self.burst > slack // 2

    # --- Files ------------------------------------------------------------------------------------------

    def reserve(self) -> None:
        """Make the files at their full size, so that a full disk is noticed now and not by a SIGBUS later."""
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, field in self.fields.items():
                _reserve(self._path(name), self.num_streams * self.slots * field.nbytes)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise UserError(
                    f"algo.buffer_size={self.num_streams * self.capacity} needs {human_bytes(self.nbytes)} in "
                    f"{self.folder}, which the disk does not have: make room, lower it, or choose another folder "
                    "with outputs=..."
                ) from error
            raise
        self._map()

    def missing_bytes(self) -> int:
        """Return how much of the files is not on the disk yet."""
        paths = [self._path(name) for name in self.fields]
        return max(self.nbytes - sum(path.stat().st_size for path in paths if path.exists()), 0)

    def exists(self) -> bool:
        """Say whether all files are there."""
        return all(self._path(name).exists() for name in self.fields)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.bin"

    def _map(self) -> None:
        for name, field in self.fields.items():
            shape = (self.num_streams, self.slots, *field.shape)
            mapped = np.memmap(self._path(name), dtype=field.dtype, mode="r+", shape=shape)
            self._maps[name] = np.asarray(mapped)  # indexing a plain array is faster than indexing a memmap
            self._flat[name] = self._maps[name].reshape(-1, *field.shape)

    def stored(self, name: str) -> Iterator[tuple[int, int, Array]]:
        """Yield one field of all that a reader may look into, out of the file, in pieces that do not wrap.

        A piece is the stream, the number of its first record, and the values [K, *shape].
        """
        field = self.fields[name]
        # Not through the map: what is read only once shall not become resident memory.
        with open(self._path(name), "rb", buffering=0) as file:
            for stream, start, stop in self._reachable():
                file.seek((stream * self.slots + start % self.slots) * field.nbytes)
                values = np.fromfile(file, field.dtype, (stop - start) * int(np.prod(field.shape, dtype=np.int64)))
                yield stream, start, values.reshape(-1, *field.shape)

    # --- State ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Write what is new to the disk and return what it takes to find it again."""
        self._update_checksums()
        for name in self._maps:
            _sync(self._path(name))
        self._saved = self.head.copy()
        return {
            "slots": self.slots,
            "head": torch.from_numpy(self.head.copy()),
            "checksums": {name: torch.from_numpy(sums.copy()) for name, sums in self._checksums.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the streams back to a checkpoint. Raises RunFailed if its records are not there any more."""
        self.slots = state["slots"]
        self.head = state["head"].numpy().copy()
        self._saved = self.head.copy()
        self._checksums = {name: sums.numpy().copy() for name, sums in state["checksums"].items()}
        if not self.head.any():
            return
        missing = [self._path(name) for name in self.fields if not self._path(name).exists()]
        if missing or self.missing_bytes():
            raise RunFailed(
                f"the replay of this checkpoint is not in {self.folder}: a finished run's is deleted unless "
                "checkpoint.keep_replay=true; start anew with fresh=true"
            )
        self._map()
        self._verify()

    def _update_checksums(self) -> None:
        for stream in range(self.num_streams):
            start, end = int(self._saved[stream]), int(self.head[stream])
            while start < end:
                stop = min((start // CHUNK + 1) * CHUNK, end)
                chunk = start // CHUNK % (self.slots // CHUNK)
                for name, sums in self._checksums.items():
                    before = 0 if start % CHUNK == 0 else int(sums[stream, chunk])
                    sums[stream, chunk] = self._checksum(name, stream, start, stop, before)
                start = stop

    def _checksum(self, name: str, stream: int, start: int, stop: int, before: int) -> int:
        slot = start % self.slots
        return zlib.crc32(self._maps[name][stream, slot : slot + stop - start].data, before)

    def _verify(self) -> None:
        for name in self.fields:
            for stream, start, values in self.stored(name):
                expected = int(self._checksums[name][stream, start // CHUNK % (self.slots // CHUNK)])
                if zlib.crc32(values.data) != expected:
                    raise RunFailed(
                        f"{self._path(name)}: records {start:,} to {start + len(values):,} are not those of the "
                        "checkpoint: damaged, or overwritten by later ones, since only the last two checkpoints are "
                        "sure to find their replay, whatever checkpoint.keep; start anew with fresh=true"
                    )

    def _reachable(self) -> Iterator[tuple[int, int, int]]:
        """Yield the stream and the range of records of each chunk that a reader may look into."""
        for stream in range(self.num_streams):
            end = int(self.head[stream])
            first = max(int(self.tail[stream]) - self.reach, 0) // CHUNK
            for chunk in range(first, -(-end // CHUNK)):
                yield stream, chunk * CHUNK, min((chunk + 1) * CHUNK, end)


def _reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes whose blocks exist. An existing one keeps its content."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except (AttributeError, OSError) as error:
            unsupported = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
            if isinstance(error, OSError) and error.errno not in unsupported:
                raise
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)
    finally:
        os.close(descriptor)
