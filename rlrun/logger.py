"""Numbers on disk: three JSONL files and a TensorBoard event file that mirrors one of them."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rlrun.errors import RunFailed
from rlrun.files import disk_full

METRICS, EPISODES, EVALUATIONS = "metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"


class Logger:
    """Append rows; cut them back to a checkpoint on resume.

    Rows are keyed by environment steps. Everything that depends on the clock has a key under `time/`, so
    that the files of an interrupted and of an undisturbed run are equal but for those keys.
    """

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        for name in (METRICS, EPISODES, EVALUATIONS):
            self._files[name] = open(folder / name, "ab")  # noqa: SIM115
        self._tensorboard = TensorBoard(folder) if tensorboard else None

    def metrics(self, step: int, values: Mapping[str, Any]) -> dict[str, float | None]:
        """Append a row of scalars (tensors become numbers here, and only here); return it."""
        row = {"step": step, **{name: _number(value) for name, value in sorted(values.items())}}
        row["time/unix"] = round(time.time(), 3)
        self._append(METRICS, row)
        if self._tensorboard:
            self._tensorboard.write(row)
        self._files[EPISODES].flush()
        return row

    def episode(self, row: Mapping[str, Any]) -> None:
        self._append(EPISODES, row, flush=False)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        self._append(EVALUATIONS, row)

    def state_dict(self) -> dict[str, int]:
        """Return the files' lengths in bytes, after making sure that so much is on disk."""
        lengths = {}
        for name, file in self._files.items():
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise disk_full(self._folder / name, 0, error) from error
            lengths[name] = file.tell()
        return lengths

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Cut the files back to the given lengths and write the event file anew from what is left.

        TensorBoard's readers disagree about what a purge_step removes, so nothing relies on one.
        """
        for name, file in self._files.items():
            length = state.get(name, 0)
            if os.fstat(file.fileno()).st_size < length:
                raise RunFailed(
                    f"{self._folder / name} is shorter than its checkpoint says ({length} bytes): it was changed. "
                    "Put it back, or start anew with fresh=true"
                )
            file.truncate(length)
            file.seek(0, os.SEEK_END)
        if self._tensorboard:
            self._tensorboard.rewrite(read_rows(self._folder / METRICS))

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def _append(self, name: str, row: Mapping[str, Any], *, flush: bool = True) -> None:
        line = json.dumps(row).encode() + b"\n"
        try:
            self._files[name].write(line)
            if flush:
                self._files[name].flush()
        except OSError as error:
            raise disk_full(self._folder / name, len(line), error) from error


class TensorBoard:
    """One event file in the run folder. Its records are written at once: there is no thread to lose them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._file: IO[bytes] | None = None

    def write(self, row: Mapping[str, float | None]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._file is None:
            self._open()
        assert self._file is not None
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name not in ("step", "time/unix") and value is not None
        ]
        event = Event(wall_time=row["time/unix"], step=int(row["step"] or 0), summary=Summary(value=scalars))
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replace the event files of this run by one that holds `rows`."""
        self.close()
        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        for row in rows:
            self.write(row)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        # A new name each time: a running TensorBoard reads on in the file that it has open.
        self._file = open(self._folder / f"events.out.tfevents.{time.time_ns()}.rlrun", "wb")  # noqa: SIM115
        self._writer = RecordWriter(self._file)
        self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; a last line that was not finished is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            rows.append(json.loads(line))
    return rows


def _number(value: Any) -> float | None:
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None
