"""Run folders as rlrun writes them, made up: nothing is trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CARTPOLE = {"id": "CartPole-v1", "kwargs": {}, "max_episode_steps": 500, "policy": "last, greedy"}
PENDULUM = {"id": "Pendulum-v1", "kwargs": {}, "max_episode_steps": 200, "policy": "last, greedy"}
ACROBOT = {"id": "Acrobot-v1", "kwargs": {}, "max_episode_steps": 500, "policy": "last, greedy"}
MADE = {  # how a run was made, as run.json says it
    "started": "2026-01-02T03:04:05+00:00",
    "ended": "2026-01-02T04:04:05+00:00",
    "fingerprint": {"device": "cpu", "threads": 1, "processor": "Abacus 3000"},
    "machine": {"host": "here", "cores": 2},
    "packages": {"torch": "2.13.0", "gymnasium": "1.4.0"},
    "python": "3.11.7",
    "code": {"sha256": "0" * 64, "commit": "abcdef0123456789", "dirty_diff": ""},
}
SELECTION, REPORT = 2**30, 2**30 + 2**29  # where the seeds of evaluations and of reports begin
BREAKOUT = {
    "game": "breakout",
    "frame_skip": 4,
    "repeat_action_probability": 0.0,
    "life_loss": True,
    "policy": "last, sampled",
}


def write_run(
    outputs: Path,
    env: str = "cartpole",
    algo: str = "ppo",
    variant: str = "default",
    seed: int = 0,
    *,
    final: float | None = 400.0,
    curve: list[float] | None = None,
    protocol: dict[str, Any] | None = None,
    total_steps: int = 1000,
    config: dict[str, Any] | None = None,
    status: str = "finished",
    rows: int = 20,
    record: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder; `final` None leaves out result.json. Evaluations fall evenly on total_steps."""
    folder = outputs / env / algo / variant / f"seed={seed}"
    folder.mkdir(parents=True)
    protocol = CARTPOLE if protocol is None else protocol
    stored = _config(seed, total_steps, env, config or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
    names = {"status": status, "algo": algo, "env": env, "variant": variant, "seed": seed, "tuned": "none"}
    names |= {"steps": total_steps, "total_steps": total_steps, "protocol": protocol, "lineage": []}
    command = {"command": f"rlrun algo={algo} env={env} seed={seed}"}
    (folder / "run.json").write_text(json.dumps({**names, **MADE, **command, **(record or {})}))
    if final is not None:
        episodes = {"returns": [final] * 100, "seeds": list(range(REPORT, REPORT + 100))}
        result = {"mean_return": final, **episodes, "steps": total_steps, "protocol": protocol}
        (folder / "result.json").write_text(json.dumps({**result, "time/wall_seconds": 2.0 * total_steps}))
    points = [100.0, 200.0, 300.0, 400.0] if curve is None else curve
    write_rows(folder / "evaluations.jsonl", _evaluations(points, total_steps))
    steps = np.linspace(0, total_steps, rows + 1)[1:].astype(int).tolist()
    write_rows(
        folder / "metrics.jsonl",
        [{"step": s, "rollout/ep_rew_mean": 1.0, "time/time_elapsed": 2.0 * s, "train/loss": 0.1} for s in steps],
    )
    return folder


def _config(seed: int, total_steps: int, env: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration; `changes` are dotted keys."""
    stored: dict[str, Any] = {
        "seed": seed,
        "total_steps": total_steps,
        "eval": {"every": 50, "episodes": 10, "final_episodes": 100},
        "stop": {"at_return": None, "after_time": None},
        "algo": {"learning_rate": 0.001, "gamma": 0.99},
        "env": {"name": env},
    }
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        (stored.setdefault(section, {}) if section else stored)[leaf] = value
    return stored


def _evaluations(points: list[float], total_steps: int) -> list[dict[str, Any]]:
    """Return rows of evaluations that fall evenly on total_steps."""
    return [
        {
            "step": (i + 1) * total_steps // len(points),
            "mean_return": value,
            "std_return": 1.0,
            "returns": [value] * 10,
            "seeds": list(range(SELECTION + 10 * i, SELECTION + 10 * (i + 1))),
        }
        for i, value in enumerate(points)
    ]


def write_best(run: Path, step: int, mean_return: float, *, first_seed: int = REPORT, episodes: int = 100) -> None:
    """Write the report that `rlrun eval RUN checkpoint=best` makes."""
    path = run / "evaluations" / f"step-{step}-best-seed-0-episodes-{episodes}.json"
    path.parent.mkdir(exist_ok=True)
    seeds = list(range(first_seed, first_seed + episodes))
    path.write_text(json.dumps({"mean_return": mean_return, "returns": [mean_return] * episodes, "seeds": seeds}))


def write_study(outputs: Path, num_seeds: int = 5) -> None:
    """Write three algorithms on CartPole, Acrobot and Breakout with curves that look like learning."""
    rng = np.random.default_rng(0)
    tasks = {"cartpole": (20, 500, CARTPOLE), "acrobot": (-500, -80, ACROBOT), "breakout": (2, 60, BREAKOUT)}
    for env, (low, high, protocol) in tasks.items():
        for i, algo in enumerate(("a2c", "dqn", "ppo")):
            for seed in range(num_seeds):
                x = np.linspace(0, 1, 40)
                level = 0.6 + 0.15 * i + 0.08 * rng.standard_normal()
                y = low + (high - low) * level * x ** (0.7 - 0.2 * i) * (1 + 0.03 * rng.standard_normal(40))
                y = np.minimum(y, high) if env == "cartpole" else y
                final = float(y[-1])
                write_run(
                    outputs, env, algo, seed=seed, final=final, curve=y.tolist(), protocol=protocol, total_steps=100_000
                )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
