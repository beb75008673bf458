"""`rlrun list`: what algorithms take is read from their source, through what they inherit from."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from harness import rlrun_here

from rlrun.config import lineage, option_file, options
from rlrun.fields import constant_of
from rlrun.listing import list_options


@pytest.mark.parametrize("algo", options("algo"))
def test_the_spaces_that_are_listed_are_those_of_the_class(algo: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [path for name in lineage("algo", algo) if (path := option_file("algo", name)) is not None]
    target = next(line for path in files for line in path.read_text().splitlines() if line.startswith("_target_"))
    module, _, name = target.removeprefix("_target_: ").rpartition(".")
    cls = getattr(import_module(module), name)
    list_options([])
    listed = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == [algo])
    expected = ", ".join(cls.action_spaces)
    if cls.obs_spaces is not None:
        expected += f"; observes {', '.join(cls.obs_spaces)}"
    assert re.split(r"\s{2,}", listed)[1] == expected


def test_a_constant_is_that_of_the_nearest_class_that_states_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "family.py").write_text(
        "from typing import ClassVar\n\n\n"
        "class A:\n    spaces: ClassVar[tuple] = ('Box',)\n    none: ClassVar[int | None] = None\n\n\n"
        "class B(A):\n    other: ClassVar[int] = 3\n\n\nclass C(B):\n    spaces: ClassVar[tuple] = ('Discrete',)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert constant_of("family", "C", "spaces") == ("Discrete",)
    assert constant_of("family", "B", "spaces") == ("Box",)
    assert constant_of("family", "C", "other") == 3
    assert constant_of("family", "A", "other") is None
    assert constant_of("family", "C", "none") is None


def test_the_command_shows_all_groups(tmp_path: Path) -> None:
    done = rlrun_here(["list"], tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("algo=", "env=", "network=", "q_learning", "three_state_mdp", "observes Discrete"):
        assert word in done.stdout
