"""Checkpoints: whole or absent, checked before they are believed, never a pickle that runs code.

`checkpoints/step-N.pt` holds plain values and tensors; `step-N.json` beside it, written last, holds its
checksum and makes it count. `best-N.pt` is the policy alone, as it was at the best evaluation so far.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlrun.errors import RunFailed
from rlrun.files import beside, json_bytes, write_together

SCHEMA = 1  # raised when the meaning of what is stored changes


class CheckpointError(Exception):
    """A stored file that cannot be used, and why."""


def misfit(step: int, error: Exception) -> RunFailed:
    """Return the error for a checkpoint that is whole but was written by other code."""
    return RunFailed(
        f"the checkpoint of step {step} does not fit this version of the code ({error}): use the version that wrote "
        "it (run.json names the commit and the packages), or start anew with fresh=true"
    )


class Checkpoints:
    """The checkpoints of one run folder; the last `keep` of them are kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def save(self, step: int, state: dict[str, Any], facts: dict[str, Any]) -> None:
        """Store the state of step `step`; `facts` go into the manifest beside it, readable without torch."""
        self._write(f"step-{step}", state, {"step": step, **facts})
        for old in self.steps()[: -self.keep]:
            self._remove(f"step-{old}")
        # Whichever kept checkpoint is gone back to, the best policy as of then must still be there.
        as_of_oldest = [step for step in self.best_steps() if step <= self.steps()[0]]
        for superseded in as_of_oldest[:-1]:
            self._remove(f"best-{superseded}")

    def save_best(self, step: int, policy: dict[str, Any], facts: dict[str, Any]) -> None:
        self._write(f"best-{step}", policy, {"step": step, **facts})

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        return self._steps("step")

    def best_steps(self) -> list[int]:
        """Return the steps whose policy was the best so far, oldest first."""
        return self._steps("best")

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state and the manifest of a step. Raises CheckpointError."""
        return self._read(f"step-{step}")

    def load_best(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the best policy and its manifest. Raises CheckpointError."""
        if not self.best_steps():
            raise CheckpointError(f"{self.folder} holds no best policy: none was evaluated yet")
        return self._read(f"best-{self.best_steps()[-1]}")

    def newest(self, report: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the newest usable state and its manifest; report and set aside those that are not.

        Raises RunFailed if there are checkpoints and none is usable: to begin again would delete the logs.
        """
        unusable: list[int] = []
        for step in reversed(self.steps()):
            try:
                found = self.load(step)
            except CheckpointError as error:
                report(f"checkpoint of step {step} skipped: {error}")
                unusable.append(step)
                continue
            for bad in unusable:
                self._set_aside(f"step-{bad}")
            return found
        if unusable:
            raise RunFailed(f"{self.folder} holds no checkpoint that can be used; start anew with fresh=true")
        return None

    def discard_best_after(self, step: int) -> None:
        """Forget best policies that the restored run has not found yet."""
        for best in self.best_steps():
            if best > step:
                self._remove(f"best-{best}")

    def _steps(self, kind: str) -> list[int]:
        paths = self.folder.glob(f"{kind}-*.json")
        return sorted(int(path.stem.removeprefix(f"{kind}-")) for path in paths)

    def _write(self, name: str, state: dict[str, Any], facts: dict[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        manifest = {"schema": SCHEMA, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), **facts}
        write_together({self.folder / f"{name}.pt": content, self.folder / f"{name}.json": json_bytes(manifest)})

    def _read(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        path = self.folder / f"{name}.json"
        try:
            manifest = json.loads(path.read_text())
            content = (self.folder / f"{name}.pt").read_bytes()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name} cannot be read ({error})") from error
        if not isinstance(manifest, dict) or not manifest.keys() >= {"schema", "sha256", "step"}:
            raise CheckpointError(f"{name}.json is not a checkpoint's manifest")
        if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            if beside(path).exists():  # killed between the two renames of a step saved twice
                beside(path).replace(path)
                return self._read(name)
            raise CheckpointError(f"{name}.pt does not have the checksum that its manifest states")
        if manifest["schema"] != SCHEMA:
            raise RunFailed(
                f"{name}.pt has schema {manifest['schema']} and this rlrun reads {SCHEMA}: use the version "
                "that wrote it (run.json names the commit)"
            )
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), manifest
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{name}.pt holds something else than plain data ({error})") from error

    def _remove(self, name: str) -> None:
        # The manifest first: a file without one does not count.
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        (self.folder / f"{name}.pt").unlink(missing_ok=True)

    def _set_aside(self, name: str) -> None:
        for suffix in ("json", "pt"):
            path = self.folder / f"{name}.{suffix}"
            if path.exists():
                path.rename(path.with_name(path.name + ".corrupt"))
