"""What may be compared: the same task, the same budget, the same exam."""

from pathlib import Path
from typing import Any

import pytest
from synthetic import BREAKOUT, CARTPOLE, write_run

from rlrun.analysis.compare import comparison_of
from rlrun.analysis.tables import stamp
from rlrun.errors import UserError

STICKY = {**BREAKOUT, "repeat_action_probability": 0.25}
PONG = {**BREAKOUT, "game": "pong"}


@pytest.mark.parametrize(
    ("other", "key", "values"),
    [
        ({"protocol": STICKY}, "protocol.repeat_action_probability", ("0.0", "0.25")),
        ({"protocol": {**BREAKOUT, "life_loss": False}}, "protocol.life_loss", ("True", "False")),
        ({"total_steps": 2000}, "total_steps", ("1000", "2000")),
        ({"config": {"eval.final_episodes": 10}}, "eval.final_episodes", ("100", "10")),
        ({"config": {"stop.at_return": 30}}, "stop.at_return", ("None", "30")),
        ({"record": {"environment": {"rom_sha256": "ffff"}}}, "environment.rom_sha256", ("aaaa", "ffff")),
    ],
)
def test_mixed_protocols_are_refused_unless_told(
    tmp_path: Path, other: dict[str, Any], key: str, values: tuple[str, str]
) -> None:
    rom = {"record": {"environment": {"rom_sha256": "aaaa"}}}
    write_run(tmp_path, "breakout", "a2c", **{"protocol": BREAKOUT, **rom})
    write_run(tmp_path, "breakout", "dqn", **{"protocol": BREAKOUT, **rom, **other})
    with pytest.raises(UserError) as error:
        comparison_of([tmp_path])
    for expected in (key, *values, "mix=true", "breakout/a2c"):
        assert expected in str(error.value)
    mixed = comparison_of([tmp_path], mix=True)
    assert mixed.environments[0].mixed == [key]
    assert any("mixed protocols" in notice and key in notice for notice in mixed.notices)


def test_all_that_differs_is_listed(tmp_path: Path) -> None:
    write_run(tmp_path, "breakout", "a2c", protocol=BREAKOUT)
    write_run(tmp_path, "breakout", "dqn", protocol=STICKY, total_steps=5)
    with pytest.raises(UserError) as error:
        comparison_of([tmp_path])
    assert [line.split()[1] for line in str(error.value).splitlines()[1:-1]] == [
        "protocol.repeat_action_probability",
        "total_steps",
    ]


def test_greedy_and_sampled_policies_may_differ_between_algorithms_only(tmp_path: Path) -> None:
    sampled = {**CARTPOLE, "policy": "last, sampled"}
    write_run(tmp_path, algo="ppo", protocol=sampled)
    write_run(tmp_path, algo="dqn")
    assert any("sampled" in notice for notice in comparison_of([tmp_path]).notices)
    write_run(tmp_path, algo="ppo", variant="greedy")
    with pytest.raises(UserError, match="policy"):
        comparison_of([tmp_path])


def test_a_key_that_is_newer_than_a_run_tells_nothing_against_it(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, config={"eval.max_steps": 30_000})
    assert not comparison_of([tmp_path]).mixed
    write_run(tmp_path, seed=2, config={"eval.max_steps": 100})
    with pytest.raises(UserError, match=r"eval\.max_steps"):
        comparison_of([tmp_path])


def test_how_often_was_evaluated_matters_only_to_metrics_of_evaluations(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, config={"eval.every": 5})
    with pytest.raises(UserError, match=r"eval\.every"):
        comparison_of([tmp_path], metric="auc")
    comparison_of([tmp_path])
    comparison_of([tmp_path], metric="rollout/ep_rew_mean")


def test_games_under_different_protocols_are_not_pooled_unless_told(tmp_path: Path) -> None:
    for algo in ("dqn", "ppo"):
        write_run(tmp_path, "breakout", algo, protocol=BREAKOUT)
        write_run(tmp_path, "pong", algo, protocol={**PONG, "repeat_action_probability": 0.25})
    apart = comparison_of([tmp_path])
    assert [env.name for env in apart.environments] == ["breakout", "pong"]
    assert apart.overall.rows == []
    assert any("not pooled" in notice and "repeat_action_probability" in notice for notice in apart.notices)
    pooled = comparison_of([tmp_path], mix=True)
    assert pooled.overall.tasks == ["breakout", "pong"]
    assert pooled.overall.mixed == ["protocol.repeat_action_probability"]
    assert pooled.mixed


def test_games_under_one_protocol_are_pooled(tmp_path: Path) -> None:
    for algo in ("dqn", "ppo"):
        write_run(tmp_path, "breakout", algo, protocol=BREAKOUT)
        write_run(tmp_path, "pong", algo, protocol=PONG)
    assert comparison_of([tmp_path]).overall.tasks == ["breakout", "pong"]


def test_the_stamp_says_under_which_protocol_the_numbers_were_made(tmp_path: Path) -> None:
    write_run(tmp_path, "breakout", "a2c", protocol=STICKY)
    write_run(tmp_path, "breakout", "dqn", protocol={**STICKY, "policy": "last, greedy"})
    (env,) = comparison_of([tmp_path]).environments
    common = "game=breakout, frame_skip=4, repeat_action_probability=0.25, life_loss=True, actions greedy or sampled"
    assert stamp(env, "final") == f"{common}, 100 episodes a run"
    assert stamp(env, "auc") == common
    write_run(tmp_path, "breakout", "ppo", protocol={**STICKY, "life_loss": False})
    (env,) = comparison_of([tmp_path], mix=True).environments
    assert "life_loss" not in stamp(env, "final")
