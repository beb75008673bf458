"""From a validated configuration to objects. Nothing below this module sees a configuration."""

import os
import platform
import shutil
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rlrun import record, schema
from rlrun.algos.algorithm import Algorithm, Setup
from rlrun.checkpoint import Checkpoints
from rlrun.config import seconds
from rlrun.console import Console
from rlrun.data.collector import Collector
from rlrun.device import Device
from rlrun.envs.base import EnvSpec
from rlrun.envs.normalizer import Normalizer
from rlrun.envs.replayed import ReplayedEnvs
from rlrun.errors import UserError
from rlrun.evaluation import Evaluator
from rlrun.experiment import Experiment
from rlrun.files import human_bytes
from rlrun.logger import Logger
from rlrun.run_folder import RunFolder
from rlrun.seeding import TRAINING_SEEDS, Seeds, seed_global_generators
from rlrun.signals import Signals

BYTES_PER_ENV = 5_000  # the smallest Gymnasium environments with their wrappers
LOG_BYTES_PER_STEP = 5  # all logs together, generously


@dataclass(kw_only=True)
class Agent:
    """An algorithm with the environment and device it was built for."""

    algorithm: Algorithm
    spec: EnvSpec
    device: Device
    seeds: Seeds

    @property
    def normalizer(self) -> Normalizer:
        return self.algorithm.setup.normalizer

    def close(self) -> None:
        for collector in self.algorithm.setup.collectors:
            collector.envs.close()

    def evaluator(self, max_steps: int, signals: Signals | None = None) -> Evaluator:
        interrupted = (lambda: signals.received is not None) if signals else (lambda: False)
        normalizer = self.normalizer if self.spec.normalize_obs else None
        return Evaluator(self.algorithm, self.spec, normalizer, self.device.torch, max_steps, interrupted)

    def protocol(self, checkpoint: str = "last") -> dict[str, Any]:
        """Return the stamp that stands beside every score of the policy of a checkpoint."""
        greedy = getattr(self.algorithm, "eval_greedy", True)
        return {**self.spec.protocol(), "policy": f"{checkpoint}, {'greedy' if greedy else 'sampled'}"}

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the bits of a result besides the configuration."""
        return {
            **self.device.fingerprint(),
            "code": record.code()["sha256"][:12],
            "packages": record.packages(),
            "python": platform.python_version(),
        }


def build_agent(config: dict[str, Any]) -> Agent:
    """Build device, environments, networks and algorithm. Raises UserError where they do not fit."""
    device: Device = _construct(config["device"])
    device.activate()
    seeds = Seeds(config["seed"])
    seed_global_generators(seeds.entropy("global") % 2**63)
    spec: EnvSpec = _construct(config["env"])
    probe = spec.make(1)
    obs_space, action_space = probe.obs_space, probe.action_space
    probe.close()

    if spec.normalize_obs and not (isinstance(obs_space, spaces.Box) and obs_space.dtype.kind == "f"):
        raise UserError(f"env.normalize_obs=true is for vectors of real numbers, and env={spec.name} gives {obs_space}")
    algorithm_class = _locate(config["algo"]["_target_"])
    _check_action_space(algorithm_class, config["algo"]["_target_"], action_space, spec)
    # Rewards are scaled by the deviation of the return that the algorithm discounts.
    normalizer = Normalizer(
        obs_space.shape or (), max(1, config["algo"].get("num_envs", 1)), config["algo"].get("gamma", 1.0)
    )
    setup = Setup(
        obs_space=obs_space,
        action_space=action_space,
        make_torso=partial(_construct, config["network"], obs_space),
        make_collector=lambda num_envs: collector(num_envs),
        normalizer=normalizer,
        seeds=seeds,
        device=device,
        total_steps=config["total_steps"],
    )

    def collector(num_envs: int) -> Collector:
        _check_num_envs(num_envs, obs_space)
        name = f"environments of collector {len(setup.collectors)}"
        made = Collector(
            envs=ReplayedEnvs(spec.make(num_envs), seeds.numpy(name), TRAINING_SEEDS),
            normalizer=normalizer,
            normalize_obs=spec.normalize_obs,
            normalize_reward=spec.normalize_reward,
            clip_reward=spec.clip_reward,
            device=device.torch,
        )
        setup.collectors.append(made)
        return made

    try:
        algorithm = algorithm_class(setup=setup, **_arguments(config["algo"]))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"algo={config['algo']['_target_']} cannot be built on env={spec.name}: {error}") from error
    device.choose_threads(sum(p.numel() for m in algorithm.networks().values() for p in m.parameters()))
    return Agent(algorithm=algorithm, spec=spec, device=device, seeds=seeds)


def build_experiment(agent: Agent, config: dict[str, Any], folder: RunFolder, signals: Signals) -> Experiment:
    """Tie an agent to its run folder, which must exist."""
    stop = schema.Stop(**config["stop"])
    title = f"{agent.spec.name}/{type(agent.algorithm).__name__.lower()}/seed={config['seed']}"
    log = schema.Log(**config["log"])
    return Experiment(
        algorithm=agent.algorithm,
        normalizer=agent.normalizer,
        logger=Logger(folder.path, tensorboard=log.tensorboard),
        checkpoints=Checkpoints(folder.path, config["checkpoint"]["keep"]),
        evaluator=agent.evaluator(config["eval"]["max_steps"], signals),
        console=Console(title, config["total_steps"], enabled=log.console, log_file=folder.path / "run.log"),
        folder=folder,
        signals=signals,
        seeds=agent.seeds,
        total_steps=config["total_steps"],
        eval=schema.Eval(**config["eval"]),
        checkpoint=schema.Checkpoint(**config["checkpoint"]),
        log=log,
        at_return=stop.at_return,
        after_seconds=seconds(stop.after_time),
        protocol=agent.protocol(),
        fingerprint=agent.fingerprint(),
    )


@dataclass
class Estimate:
    """What a run will need, in bytes, and where."""

    checkpoint: int
    disk: int
    memory: int

    def __str__(self) -> str:
        return f"needs about {human_bytes(self.disk)} of disk and {human_bytes(self.memory)} of memory"


def estimate(agent: Agent, config: dict[str, Any]) -> Estimate:
    """Return what the run will need, from the sizes of what was built."""
    algorithm = agent.algorithm
    weights = sum(p.nbytes for m in algorithm.networks().values() for p in m.parameters())
    checkpoint = 3 * weights + sum(c.obs.nbytes for c in algorithm.setup.collectors) + 200_000
    disk = checkpoint * (config["checkpoint"]["keep"] + 2) + config["total_steps"] * LOG_BYTES_PER_STEP
    stored = sum(c.bytes_per_step() for c in algorithm.setup.collectors) * algorithm.stored_steps()
    # Weights, gradients, two moments and a checkpoint in the making; a rollout and its minibatches.
    memory = _resident_bytes() + 6 * weights + 3 * stored
    return Estimate(checkpoint, disk, memory)


def check_room(needed: Estimate, folder: Path) -> None:
    """Raise UserError if the run folder's disk or memory cannot hold the run."""
    existing = next(path for path in [folder, *folder.resolve().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if needed.disk > free:
        raise UserError(
            f"outputs: {folder} has {human_bytes(free)} free and the run needs about {human_bytes(needed.disk)}: "
            "make room, or choose another folder with outputs=..."
        )
    available = _available_bytes()
    if available is not None and needed.memory - _resident_bytes() > available:
        raise UserError(
            f"the run needs about {human_bytes(needed.memory)} of memory and {human_bytes(available)} are "
            "available: lower algo.num_envs, algo.num_steps or the network's sizes"
        )


def _check_num_envs(num_envs: int, obs_space: Any) -> None:
    """Raise UserError before so many environments are made that memory could not hold them."""
    available = _available_bytes()
    needed = num_envs * (BYTES_PER_ENV + int(np.prod(obs_space.shape or (1,))) * obs_space.dtype.itemsize * 3)
    if available is not None and needed > available:
        raise UserError(
            f"algo.num_envs={num_envs} needs at least {human_bytes(needed)} of memory and {human_bytes(available)} "
            "are available: lower it"
        )


def _check_action_space(algorithm: type[Algorithm], target: str, space: Any, spec: EnvSpec) -> None:
    kind = type(space).__name__
    if kind not in algorithm.action_spaces:
        raise UserError(
            f"algo={target} cannot act in env={spec.name}: its action space is {space}, and this algorithm takes "
            f"{', '.join(algorithm.action_spaces)}; `rlrun list` shows which algorithms take {kind}"
        )


def _construct(config: dict[str, Any], *positional: Any) -> Any:
    return _locate(config["_target_"])(*positional, **_arguments(config))


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_target_"}


def _locate(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def load_policy(agent: Agent, stored: dict[str, Any]) -> None:
    """Give the agent a stored best policy, or the policy out of a full checkpoint's state."""
    agent.algorithm.load_policy_state_dict(stored["policy"] if "policy" in stored else stored["algorithm"])
    agent.normalizer.load_state_dict(stored["normalizer"])
