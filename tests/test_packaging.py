"""A wheel holds the configurations and works from any folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

from harness import environment

REPO = Path(__file__).parent.parent


def test_a_wheel_brings_its_configurations_and_runs_from_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPO, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(installed)
    empty.mkdir()
    names = {p.name for p in (REPO / "conf").rglob("*.yaml")}
    assert {p.name for p in (installed / "rlrun" / "conf").rglob("*.yaml")} == names
    done = subprocess.run(
        [sys.executable, "-m", "rlrun", "env=cartpole", "total_steps=300", "eval.final_episodes=1"],
        cwd=empty,
        env=environment(PYTHONPATH=str(installed)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(empty.rglob("result.json"))
