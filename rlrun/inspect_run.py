"""Stored runs, taken up to be looked at: `rlrun.load`, and the verb `eval`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rlrun.algos.algorithm import Algorithm
from rlrun.arguments import parse
from rlrun.build import Agent, build_agent, load_policy
from rlrun.checkpoint import CheckpointError, Checkpoints, misfit
from rlrun.data.collector import State, to_policy
from rlrun.errors import UserError
from rlrun.files import write_json
from rlrun.run_folder import RunFolder
from rlrun.seeding import REPORT_SEEDS, preserved_rng
from rlrun.stateful import StateMismatch

__all__ = ["LoadedRun", "evaluate", "load", "parse"]

GREEDY = {"eval_greedy": True, "eval_epsilon": 0.0}  # what makes `act` greedy, in algorithms that have such a key


@dataclass
class LoadedRun:
    """The policy of a stored run."""

    path: Path
    config: dict[str, Any]
    agent: Agent
    step: int  # of the checkpoint that the policy comes from
    sha256: str = ""  # of that checkpoint's file
    _state: State = None
    _first: bool = True
    _draws: int = field(default=0)

    def act(self, obs: np.ndarray | int) -> Any:
        """Return the action for one raw observation, as the environment's own `step` takes it.

        Recurrent policies remember; `reset` begins a new episode. The global generators stay untouched.
        """
        space = self.agent.algorithm.setup.action_space
        expected, given = self.agent.algorithm.setup.obs_space.shape or (), np.shape(obs)
        if given != expected:
            raise UserError(f"act takes one observation of shape {expected}, not {given}")
        normalizer = self.agent.normalizer if self.agent.spec.normalize_obs else None
        device = self.agent.device.torch
        self._draws += 1
        with torch.no_grad(), preserved_rng(self.agent.seeds.entropy(f"act {self._draws}") % 2**63):
            action, self._state = self.agent.algorithm.act(
                to_policy(np.asarray(obs)[None], normalizer, device),
                self._state,
                torch.tensor([self._first], device=device),
            )
        self._first = False
        chosen = action[0].cpu().numpy()
        if isinstance(space, spaces.Box):
            return np.clip(chosen.reshape(space.shape), space.low, space.high)
        counted = chosen + getattr(space, "start", 0)  # policies count from 0
        return int(counted) if counted.ndim == 0 else counted

    def reset(self) -> None:
        """Forget the episode so far."""
        self._state, self._first = None, True

    def origin(self, checkpoint: str) -> dict[str, Any]:
        """Return what a run that takes something from this one notes of it: where it lies, and which policy it was."""
        record = RunFolder(self.path).record()
        names = {name: record[name] for name in ("algo", "env")}
        which = {"run": str(self.path.resolve()), "checkpoint": checkpoint, "step": self.step, "sha256": self.sha256}
        return {**which, **names}


def load(run: str | Path, checkpoint: str | int = "best", device: Mapping[str, Any] | None = None) -> LoadedRun:
    """Return the policy of a run folder: of its best evaluation, its last checkpoint, or that of a step.

    `device` holds the keys of device.* that shall differ from the run's, such as {"kind": "cpu"}. Raises UserError
    for a folder that is not a run, or a checkpoint that is not there.
    """
    folder = RunFolder.existing(run)
    config = folder.config()
    config["device"] |= device or {}
    stored, manifest = stored_policy(folder, str(checkpoint))
    if config["device"]["kind"] == "cuda" and not torch.cuda.is_available():
        print("the run was on cuda; there is none here, so its policy plays on the CPU", file=sys.stderr)
        config["device"]["kind"] = "cpu"
    try:
        agent = revived(config, stored)
    except StateMismatch as error:
        raise misfit(manifest["step"], error) from error
    return LoadedRun(folder.path, config, agent, manifest["step"], manifest["sha256"])


def make_greedy(algorithm: Algorithm) -> bool:
    """Make `act` greedy in place; say whether it was not."""
    changed = {name: value for name, value in GREEDY.items() if getattr(algorithm, name, value) != value}
    for name, value in changed.items():
        setattr(algorithm, name, value)
    return bool(changed)


def revived(config: dict[str, Any], stored: dict[str, Any]) -> Agent:
    """Return the agent of a configuration with a stored policy. Raises StateMismatch if they do not fit."""
    # Only training asks for the potential, whose module need not be there any more.
    config = {**config, "env": {**config["env"], "potential": None}}
    threads = torch.get_num_threads()
    with preserved_rng(0):  # the caller's generators and threads are the caller's
        agent = build_agent(config)
    torch.set_num_threads(threads)
    load_policy(agent, stored)
    return agent


def evaluate(arguments: list[str]) -> int:
    """rlrun eval RUN [episodes=100] [checkpoint=last|best|STEP] [seed=0] [first_seed=N]: play episodes, report them.

    Episodes are seeded from the range that is kept for reports, at a place that `seed` chooses; first_seed=N plays
    environment seeds N, N + 1, ... instead, for comparison with scores from elsewhere.
    """
    defaults = {"episodes": 100, "checkpoint": "last", "seed": 0, "first_seed": None}
    path, options = parse(arguments, defaults, "eval")
    if (options["episodes"] or 0) < 1:
        raise UserError(f"episodes={options['episodes']} is out of range: expected at least 1")
    _check_seeds(options)
    run = load(path, options["checkpoint"])
    seeds, name = _episode_seeds(run, options)
    result = run.agent.evaluator(run.config["eval"]["max_steps"]).evaluate(seeds)
    assert result is not None
    report = {
        **result.row(),
        "checkpoint": options["checkpoint"],
        "step": run.step,
        "protocol": run.agent.protocol(str(options["checkpoint"])),
    }
    target = run.path / "evaluations" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    write_json(target, report)
    print(
        f"return {result.mean_return:.2f} ± {result.std_return:.2f} (min {min(result.returns):g}, max "
        f"{max(result.returns):g}) over {len(seeds)} episodes of mean length {result.mean_length:.0f}, policy of "
        f"step {run.step:,} ({options['checkpoint']})\n{target}"
    )
    return 0


def _check_seeds(options: dict[str, Any]) -> None:
    """Raise UserError for a first_seed that is none, or that is given along with seed."""
    first, last = options["first_seed"], REPORT_SEEDS.stop - options["episodes"]
    if first is None:
        return
    if (
        isinstance(first, bool)
        or not isinstance(first, int | float)
        or not (0 <= first <= last and int(first) == first)
    ):
        raise UserError(f"first_seed={first} is no environment seed: expected a whole number from 0 to {last}")
    if options["seed"]:
        raise UserError(
            f"seed={options['seed']} chooses the episodes, and so does first_seed={first}: leave one of them out"
        )


def _episode_seeds(run: LoadedRun, options: dict[str, Any]) -> tuple[list[int], str]:
    """Return the environments' seeds and the report's name, which tells all that decides what is in it."""
    which, episodes = str(options["checkpoint"]), options["episodes"]
    policy = f"step-{run.step}" if which == str(run.step) else f"step-{run.step}-{which}"
    if options["first_seed"] is None:
        name = f"{policy}-seed-{options['seed']}-episodes-{episodes}"
        return run.agent.seeds.episodes(f"eval {options['seed']}", REPORT_SEEDS, episodes), name
    first = int(options["first_seed"])
    if first < REPORT_SEEDS.start:
        print(
            f"note: episodes {first}, {first + 1}, ... are among those that may have trained or chosen a policy",
            file=sys.stderr,
        )
    return list(range(first, first + episodes)), f"{policy}-first-seed-{first}-episodes-{episodes}"


def stored_policy(folder: RunFolder, which: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state that holds a run's policy, and its manifest. Raises UserError if it is not there."""
    checkpoints = Checkpoints(folder.path, keep=1)
    steps = checkpoints.steps()
    try:
        if which == "best" and checkpoints.best_steps():
            return checkpoints.load_best()
        if which in ("best", "last"):
            if which == "best":
                print("no evaluation has chosen a best policy yet: taking the last", file=sys.stderr)
            if not steps:
                raise UserError(f"{folder.path} holds no checkpoint yet: it was stopped before the first")
            return checkpoints.load(steps[-1])
        if not which.isdigit() or int(which) not in steps:
            raise UserError(f"checkpoint={which} is not there: known are best, last, {', '.join(map(str, steps))}")
        return checkpoints.load(int(which))
    except CheckpointError as error:
        raise UserError(f"checkpoint={which} cannot be used: {error}; try another") from error
