"""`rlrun playground`: a first look at environments without any training."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import rlrun_here

from rlrun.errors import UserError
from rlrun.playground import playground

SMALL = ["envs=cartpole,frozenlake", "episodes=6"]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_random_and_scripted_policies_are_played_and_reported_without_torch_in_under_10_seconds(tmp_path: Path) -> None:
    program = (
        "import sys, time\nstart = time.process_time()\nfrom rlrun.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print('torch' in sys.modules, time.process_time() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "playground"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    has_torch, seconds = done.stdout.splitlines()[-1].split()
    assert has_torch == "False"
    assert float(seconds) < 10  # of the processor: other tests run beside this one
    out = tmp_path / "outputs/playground"
    assert "results.json and report.html in outputs/playground" in done.stdout
    environments = results(out)["environments"]
    assert {env: set(found["policies"]) for env, found in environments.items()} == {
        "cartpole": {"random", "scripted"},
        "mountaincar": {"random", "scripted"},
        "acrobot": {"random", "scripted"},
        "frozenlake": {"random"},
        "taxi": {"random"},
    }
    page = (out / "report.html").read_text()
    assert "nothing was trained" in page
    for name in (*environments, "random", "scripted"):
        assert name in page
    report = json.loads((out / "report.json").read_text())["environments"]["cartpole"]
    played = environments["cartpole"]["policies"]["scripted"]
    assert report["groups"]["scripted"]["mean"]["value"] == pytest.approx(played["mean_return"])
    assert report["groups"]["scripted"]["finished"] == 20


def test_numbers_are_those_of_the_episodes(tmp_path: Path) -> None:
    assert rlrun_here(["playground", *SMALL, "out=here"], tmp_path).returncode == 0
    stored = results(tmp_path / "here")
    assert stored["seed"] == 0
    assert stored["environments"]["cartpole"]["protocol"]["id"] == "CartPole-v1"
    for found in stored["environments"].values():
        for policy in found["policies"].values():
            assert policy["seeds"] == list(range(6))
            assert policy["mean_return"] == np.mean(policy["returns"])
            assert policy["std_return"] == np.std(policy["returns"])
            assert (policy["min_return"], policy["max_return"]) == (min(policy["returns"]), max(policy["returns"]))
            assert policy["mean_length"] == np.mean(policy["lengths"])


def test_one_seed_gives_one_results_file_and_another_gives_another(tmp_path: Path) -> None:
    texts = {}
    for out, options in {
        "once": [],
        "again": [],
        "other": ["seed=1"],
        "alone": ["envs=cartpole"],
    }.items():
        playground_in(tmp_path / out, *SMALL, *options)
        texts[out] = (tmp_path / out / "results.json").read_text()
    assert texts["once"] == texts["again"]
    stored = {out: json.loads(text)["environments"]["cartpole"]["policies"]["random"] for out, text in texts.items()}
    assert stored["once"]["returns"] != stored["other"]["returns"]
    assert stored["once"] == stored["alone"]  # whichever others are played


def test_the_hand_written_cartpole_policy_scores_exactly_its_published_return(tmp_path: Path) -> None:
    playground_in(tmp_path, "envs=cartpole", "episodes=500")
    policy = results(tmp_path)["environments"]["cartpole"]["policies"]["scripted"]
    assert (round(policy["mean_return"], 3), round(policy["std_return"], 3)) == (41.698, 8.389)
    assert (policy["min_return"], policy["max_return"]) == (24, 63)


def test_box2d_and_atari_are_played_where_their_packages_are(tmp_path: Path) -> None:
    playground_in(tmp_path, "envs=lunarlander,breakout", "episodes=2")
    environments = results(tmp_path)["environments"]
    assert set(environments["lunarlander"]["policies"]) == {"random", "scripted"}
    assert set(environments["breakout"]["policies"]) == {"random"}
    assert environments["breakout"]["protocol"]["game"] == "breakout"


def playground_in(out: Path, *options: str) -> None:
    assert playground([*options, f"out={out}"]) == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["envs=cartpol"], r"envs=cartpol does not exist\. Did you mean cartpole"),
        (["envs="], "envs= has no value"),
        (["envs=','"], "envs=, names no environment"),
        (["out="], "out= has no value"),
        (["envs=gym"], r"envs=gym is no single environment .*env\.id"),
        (["episodes=0"], "episodes=0 is out of range"),
        (["episodes=many"], "episodes=many has the wrong type"),
        (["seed=-1"], "seed=-1 is out of range"),
        (["seed=2147483647"], "seed=2147483647 is out of range"),
        (["environments=taxi"], "no key environments"),
        (["taxi"], "taxi is not key=value"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    options: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        playground(options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = rlrun_here(["playground", "envs=frozenlake", "episodes=2", "out=file"], tmp_path)
    assert done.returncode == 2
    assert "out=file" in done.stderr


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.bipedal_walker", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"rlrun\[box2d\]"):
        playground(["envs=lunarlander", "episodes=1"])
    assert list(tmp_path.iterdir()) == []
