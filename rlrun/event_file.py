"""TensorBoard's file format, written without a thread: what was given is in the file when the call returns."""

import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGBA = 4  # the colour space that an image summary names; readers take it from the PNG itself
PATTERN = "events.out.tfevents.*"


class EventFile:
    """One event file in a folder, made when the first record is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._file: IO[bytes] | None = None

    def write(self, step: int, summary: Any, wall_time: float) -> None:
        """Append a summary. `wall_time`: seconds since the epoch."""
        if self._file is None:
            # A new name each time: a running TensorBoard reads on in the file that it has open.
            self._file = open(self._folder / f"events.out.tfevents.{time.time_ns()}.rlrun", "wb")  # noqa: SIM115
            self._writer = writer(self._file, time.time())
        write_event(self._writer, step, summary, wall_time)
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def remove_all(self) -> None:
        """Delete the event files of the folder; what is written from now on goes into a new one."""
        self.close()
        for old in self._folder.glob(PATTERN):
            old.unlink()


def writer(file: IO[bytes], wall_time: float) -> Any:
    """Return what writes events to a file, after the one that every event file begins with."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    records = RecordWriter(file)
    records.write(Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())
    return records


def write_event(records: Any, step: int, summary: Any, wall_time: float) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    records.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())


def scalars(values: Mapping[str, float | None]) -> Any:
    """Return the summary of numbers, {tag: value}; those that are None are left out."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in values.items() if v is not None])


def image(tag: str, png: bytes) -> Any:
    """Return the summary of a picture. Raises ValueError for what is no PNG."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = png_size(png)
    content = Summary.Image(width=width, height=height, colorspace=RGBA, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def text(tag: str, markdown: str) -> Any:
    """Return the summary of a text."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(tag, markdown)


def png_size(png: bytes) -> tuple[int, int]:
    """Return width and height [pixels]. Raises ValueError for what is no PNG."""
    if not png.startswith(PNG_SIGNATURE) or len(png) < 24:
        raise ValueError(f"these {len(png)} bytes are no PNG")
    width, height = struct.unpack(">II", png[16:24])
    return width, height
