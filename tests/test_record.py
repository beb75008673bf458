"""What a run says about its code, its packages and its machine."""

import importlib.metadata
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlrun import record
from rlrun.build import Agent


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Let a test look up anew what the process has found out, and later ones too."""
    for function in (record.packages, record.code):
        function.cache_clear()
    yield
    for function in (record.packages, record.code):
        function.cache_clear()


def test_packages_and_code_are_looked_up_once_however_often_a_run_asks(
    forgotten: None, make_agent: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    version, run = importlib.metadata.version, subprocess.run

    def counted_version(name: str) -> str:
        asked.append(name)
        return version(name)

    def counted_run(command: list[str], **options: Any) -> Any:
        asked.append(" ".join(command[:2]))
        return run(command, **options)

    agent = make_agent("algo=random", "env=cartpole")
    monkeypatch.setattr(importlib.metadata, "version", counted_version)
    monkeypatch.setattr(subprocess, "run", counted_run)
    told = [agent.fingerprint()["packages"], record.provenance()["packages"], agent.fingerprint()["packages"]]
    assert told[0] == told[1] == told[2] == {name: version(name) for name in told[0]}
    assert {"rlrun", "torch", "numpy"} <= told[0].keys()
    assert sorted(set(asked)) == sorted(asked)
