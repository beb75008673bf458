"""Numbers and pictures on disk: three JSONL files, a folder of images, and a TensorBoard file that mirrors them."""

import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rlrun import event_file
from rlrun.errors import RunFailed
from rlrun.event_file import EventFile
from rlrun.facts import FAILED, INTERRUPTED, Facts
from rlrun.files import disk_full, write_atomically
from rlrun.hparams import session_end, session_start
from rlrun.mirror import Mirror

METRICS, EPISODES, EVALUATIONS = "metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"
IMAGE_NAME = re.compile(r"(?P<tag>.+)-(?P<step>\d+)\.png")
RESULT = "final/mean_return"  # the tag of what result.json reports
IMAGES = "images"  # the folder of pictures, and the key of the logger's state that is about them


class Logger:
    """Append rows; cut them back to a checkpoint on resume.

    Rows are keyed by environment steps. Everything that depends on the clock has a key under `time/`, so
    that the files of an interrupted and of an undisturbed run are equal but for those keys.
    """

    def __init__(
        self, folder: Path, *, tensorboard: bool, facts: Facts | None = None, mirror: Mirror | None = None
    ) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        for name in (METRICS, EPISODES, EVALUATIONS):
            self._files[name] = open(folder / name, "ab")  # noqa: SIM115
        self._images = {tag: step for step, tag, _ in self._stored_images()}  # the last step that each was drawn at
        self._tensorboard = EventFile(folder) if tensorboard else None
        self._facts, self._mirror = facts, mirror

    def metrics(self, step: int, values: Mapping[str, Any]) -> dict[str, float | None]:
        """Append a row of scalars (tensors become numbers here, and only here); return it."""
        row = {"step": step, **{name: _number(value) for name, value in sorted(values.items())}}
        row["time/unix"] = round(time.time(), 3)
        self._append(METRICS, row)
        self._show(row)
        self._files[EPISODES].flush()
        return row

    def episode(self, row: Mapping[str, Any]) -> None:
        self._append(EPISODES, row, flush=False)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        self._append(EVALUATIONS, row)

    def image(self, step: int, tag: str, image: bytes | Path) -> None:
        """Keep a PNG (its bytes, or its path) as images/<tag>-<step>.png, and show it in TensorBoard.

        A slash in the tag makes a folder. Raises ValueError for what is no PNG.
        """
        png = image.read_bytes() if isinstance(image, Path) else image
        event_file.png_size(png)
        path = self._folder / IMAGES / f"{tag}-{step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, png)
        self._images[tag] = step
        if self._tensorboard:
            self._write_image(self._tensorboard, step, tag, path)

    def result(self, step: int, mean_return: float) -> None:
        """Show what result.json reports; it is no row of metrics, as it is not measured again on resume."""
        self._show({"step": step, RESULT: mean_return, "time/unix": time.time()})

    def state_dict(self) -> dict[str, Any]:
        """Return the files' lengths in bytes, after making sure that so much is on disk, and the latest images."""
        lengths: dict[str, Any] = {IMAGES: dict(self._images)}
        for name, file in self._files.items():
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise disk_full(self._folder / name, 0, error) from error
            lengths[name] = file.tell()
        return lengths

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the files back to what they were and write the event file anew from what is left.

        TensorBoard's readers disagree about what a purge_step removes, so nothing relies on one.
        """
        for name, file in self._files.items():  # all, before any of them is cut
            length = state.get(name, 0)
            if os.fstat(file.fileno()).st_size < length:
                raise RunFailed(
                    f"{self._folder / name} is shorter than its checkpoint says ({length} bytes): it was changed. "
                    "Put it back, or start anew with fresh=true"
                )
        for name, file in self._files.items():
            file.truncate(state.get(name, 0))
            file.seek(0, os.SEEK_END)
        self._images = dict(state.get(IMAGES, {}))
        for step, tag, path in self._stored_images():
            if step > self._images.get(tag, -1):
                path.unlink()
        if self._tensorboard:
            self._rewrite(self._tensorboard)
        if self._mirror:
            self._mirror.start(self._folder / METRICS, state.get(METRICS, 0))

    def close(self, status: str = INTERRUPTED) -> None:
        """Close all files, and say how the run ended if it did."""
        for file in self._files.values():
            file.close()
        if self._mirror:
            self._mirror.finish(status)
        if self._tensorboard:
            if self._facts and status != INTERRUPTED:
                now = time.time()
                self._tensorboard.write(0, session_end(succeeded=status != FAILED, unix=now), now)
            self._tensorboard.close()

    def _show(self, row: Mapping[str, Any]) -> None:
        """Give a row to those that mirror metrics.jsonl."""
        if self._tensorboard:
            self._write_row(self._tensorboard, row)
        if self._mirror:
            self._mirror.row(row)

    def _rewrite(self, tensorboard: EventFile) -> None:
        """Replace this run's event files by one that holds what the other files do."""
        tensorboard.remove_all()
        if self._facts:
            tensorboard.write(0, session_start(self._facts), self._facts.started_unix)
        images = self._stored_images()
        for row in read_rows(self._folder / METRICS):
            while images and images[0][0] < row["step"]:
                self._write_image(tensorboard, *images.pop(0))
            self._write_row(tensorboard, row)
        for image in images:
            self._write_image(tensorboard, *image)

    def _write_row(self, tensorboard: EventFile, row: Mapping[str, Any]) -> None:
        values = {tag: value for tag, value in row.items() if tag not in ("step", "time/unix")}
        tensorboard.write(row["step"], event_file.scalars(values), row["time/unix"])

    def _write_image(self, tensorboard: EventFile, step: int, tag: str, path: Path) -> None:
        tensorboard.write(step, event_file.image(tag, path.read_bytes()), path.stat().st_mtime)

    def _stored_images(self) -> list[tuple[int, str, Path]]:
        """Return (step, tag, path) of the images on disk, by step."""
        folder = self._folder / IMAGES
        named = [(path, IMAGE_NAME.fullmatch(path.relative_to(folder).as_posix())) for path in folder.rglob("*.png")]
        return sorted((int(match["step"]), match["tag"], path) for path, match in named if match)

    def _append(self, name: str, row: Mapping[str, Any], *, flush: bool = True) -> None:
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        try:
            self._files[name].write(line)
            if flush:
                self._files[name].flush()
        except OSError as error:
            raise disk_full(self._folder / name, len(line), error) from error


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
