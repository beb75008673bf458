"""From a validated configuration to objects. Nothing below this module sees a configuration."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymnasium import spaces

from rlrun import record, schema
from rlrun.algos.algorithm import Algorithm, Setup
from rlrun.checkpoint import Checkpoints
from rlrun.config import algorithms_that, seconds
from rlrun.console import Console
from rlrun.data.collector import Collector
from rlrun.data.prioritized import PrioritizedReplay
from rlrun.data.replay import Replay, most_records
from rlrun.data.tabular_collector import TabularCollector, make_tabular_collector
from rlrun.device import Device
from rlrun.distributed import LONE, World
from rlrun.envs.base import EnvSpec
from rlrun.envs.normalizer import Normalizer
from rlrun.envs.replayed import ReplayedEnvs
from rlrun.envs.shaping import Shaping
from rlrun.envs.tabular import Model
from rlrun.errors import UserError
from rlrun.evaluation import Evaluator
from rlrun.experiment import Experiment
from rlrun.facts import Facts
from rlrun.logger import Logger
from rlrun.mirror import Mirror
from rlrun.networks.actor_critic import ActorCritic
from rlrun.networks.recurrent import RecurrentActorCritic, RecurrentTorso
from rlrun.room import check_num_envs
from rlrun.run_folder import RunFolder
from rlrun.seeding import TRAINING_SEEDS, Seeds, seed_global_generators
from rlrun.signals import Signals

if TYPE_CHECKING:
    from rlrun.followers import Followers


@dataclass(kw_only=True)
class Agent:
    """An algorithm with the environment and device it was built for."""

    algorithm: Algorithm
    spec: EnvSpec
    device: Device
    seeds: Seeds
    elsewhere: list[dict[str, Any]] = field(default_factory=list)  # how the fingerprints of other processes differ

    @property
    def normalizer(self) -> Normalizer:
        return self.algorithm.setup.normalizer

    @property
    def world(self) -> World:
        return self.algorithm.setup.world

    def close(self) -> None:
        self.algorithm.close()
        for collector in self.algorithm.setup.collectors:
            collector.envs.close()
        for replay in self.algorithm.setup.replays:
            replay.close()

    def evaluator(self, max_steps: int, signals: Signals | None = None) -> Evaluator:
        interrupted = (lambda: signals.received is not None) if signals else (lambda: False)
        normalizer = self.normalizer if self.spec.normalize_obs else None
        return Evaluator(self.algorithm, self.spec, normalizer, self.device.torch, max_steps, interrupted)

    def protocol(self, checkpoint: str = "last") -> dict[str, Any]:
        """Return the stamp that stands beside every score of the policy of a checkpoint."""
        greedy, epsilon = getattr(self.algorithm, "eval_greedy", True), getattr(self.algorithm, "eval_epsilon", 0.0)
        how = f"epsilon {epsilon:g}" if epsilon else "greedy" if greedy else "sampled"
        return {**self.spec.protocol(), "policy": f"{checkpoint}, {how}"}

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the bits of a result besides the configuration."""
        processes = {"processes": self.world.size} if self.world.size > 1 else {}
        return {
            **self.device.fingerprint(),
            **processes,
            **({"elsewhere": self.elsewhere} if any(self.elsewhere) else {}),
            "code": record.code()["sha256"][:12],
            "packages": record.packages(),
            "python": platform.python_version(),
        }


def build_agent(config: dict[str, Any], folder: Path | None = None, world: World = LONE) -> Agent:
    """Build device, environments, networks and algorithm. Raises UserError where they do not fit.

    `folder`: the run's, where a replay lies; without one it lies in a temporary folder once it is used. `world`: the
    processes that the run is split over; all build at the same time.
    """
    device: Device = _construct(config["device"])
    device.activate()
    if device.kind == "cuda":
        world.take_gpu()
    seeds = Seeds(config["seed"], world)
    seed_global_generators(seeds.entropy("global") % 2**63)
    spec: EnvSpec = _construct(config["env"])
    setup = _setup(config, folder, device, seeds, spec)
    try:
        algorithm = _locate(config["algo"]["_target_"])(setup=setup, **_arguments(config["algo"]))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"algo={config['algo']['_target_']} cannot be built on env={spec.name}: {error}") from error
    if device.replay_on_device and not setup.replays:
        raise UserError(
            f"device.replay_on_device=true: algo={config['algo']['_target_']} has no replay; leave it out, or take one "
            "that has, such as algo=dqn or algo=sac"
        )
    num_weights = sum(p.numel() for m in algorithm.networks().values() for p in m.parameters())
    device.choose_threads(num_weights, algorithm.threads_at_once(), algorithm.threads_meanwhile())
    return Agent(algorithm=algorithm, spec=spec, device=device, seeds=seeds)


def _setup(config: dict[str, Any], folder: Path | None, device: Device, seeds: Seeds, spec: EnvSpec) -> Setup:
    """Return what the algorithm is given besides its numbers. Raises UserError where the parts do not fit."""
    probe = spec.make(1)
    obs_space, action_space = probe.obs_space, probe.action_space
    shaping = None if spec.potential is None else Shaping.of(spec.potential, config["algo"], probe)
    probe.close()

    world, target = seeds.world, config["algo"]["_target_"]
    algorithm_class = _locate(target)
    if world.size > 1 and not algorithm_class.distributed:
        raise UserError(
            f"algo={target} learns in one process, and torchrun started {world.size}: leave torchrun out, or take "
            f"one of {', '.join(algorithms_that('distributed'))}"
        )
    _check_spaces(algorithm_class, target, obs_space, action_space, spec)
    recurrent = _recurrent(config["network"]["_target_"], algorithm_class, target)
    setup = Setup(
        obs_space=obs_space,
        action_space=action_space,
        make_torso=lambda space=obs_space: _construct(config["network"], space),
        make_actor_critic=lambda **options: (RecurrentActorCritic if recurrent else ActorCritic)(
            setup.make_torso, action_space, **options
        ),
        recurrent=recurrent,
        make_collector=lambda *args, **options: _make_collector(setup, spec, shaping, *args, **options),
        make_tabular_collector=lambda: _make_tabular_collector(setup, spec, shaping),
        make_model=partial(_model, spec, target),
        make_replay=lambda **numbers: _make_replay(setup, spec, folder, config["checkpoint"]["every"], **numbers),
        # Rewards are scaled by the deviation of the return that the algorithm discounts.
        normalizer=Normalizer(obs_space.shape or (), config["algo"].get("gamma", 1.0), world),
        normalized=[key for key in ("normalize_obs", "normalize_reward") if getattr(spec, key)],
        seeds=seeds,
        device=device,
        total_steps=config["total_steps"],
        world=world,
    )
    return setup


def _make_collector(
    setup: Setup, spec: EnvSpec, shaping: Shaping | None, num_envs: int, raw: bool = False, name: str | None = None
) -> Collector:
    world, num_envs = setup.world, setup.world.share("algo.num_envs", num_envs)
    check_num_envs(num_envs, setup.obs_space)
    name = name or f"environments of collector {len(setup.collectors)}"
    rng = setup.seeds.numpy(name)
    rng.integers(len(TRAINING_SEEDS), size=world.rank * num_envs)  # the first seeds of the processes before this one
    made = Collector(
        envs=ReplayedEnvs(spec.make(num_envs), rng, TRAINING_SEEDS),
        normalizer=setup.normalizer,
        normalize_obs=spec.normalize_obs,
        normalize_reward=spec.normalize_reward,
        clip_reward=spec.clip_reward,
        device=setup.device.torch,
        raw=raw,
        shaping=shaping,
        first_env=world.rank * num_envs
        + sum(other.num_envs * world.size for other in setup.collectors if isinstance(other, Collector)),
        steps_elsewhere=lambda: sum(other.steps for other in setup.collectors if other is not made),
        world=world,
    )
    if world.size > 1:  # the next ones are drawn as each process's environments need them
        made.envs.rng = setup.seeds.numpy(f"{name}, process {world.rank}")
    setup.collectors.append(made)
    return made


def _make_tabular_collector(setup: Setup, spec: EnvSpec, shaping: Shaping | None) -> TabularCollector:
    _check_own_rewards(spec)
    name = f"environments of collector {len(setup.collectors)}"
    made = make_tabular_collector(spec, setup.seeds, name, shaping)
    setup.collectors.append(made)
    return made


def _make_replay(
    setup: Setup,
    spec: EnvSpec,
    folder: Path | None,
    checkpoint_every: int,
    *,
    num_envs: int,
    capacity: int,
    num_steps: int,
    n_steps: int,
    gamma: float,
    alpha: float | None,
) -> Replay:
    """Make a replay for an algorithm.

    num_steps: how many steps of each environment are added at once; alpha: the exponent of prioritized
    replay, None for a uniform one; the others as in `Replay`.
    """
    per_env = checkpoint_every // num_envs + num_steps
    # Twice the records between checkpoints: the last one may prove corrupt. But over all environments not more than
    # a fiftieth of a large replay: checkpoints are cheap, and are made more often where the slack is used up.
    slack = min(2 * per_env, max(20_000, capacity // 50) // num_envs)
    slack += 4 * most_records(num_steps, spec.stacked_frames())
    number = len(setup.replays)
    arguments: dict[str, Any] = {
        "folder": folder / "replay" / str(number) if folder else None,
        "obs_space": setup.obs_space,
        "action_space": setup.action_space,
        "num_envs": num_envs,
        "capacity": capacity,
        "num_steps": num_steps,
        "slack": slack,
        "n_steps": n_steps,
        "gamma": gamma,
        "frame_stack": spec.stacked_frames(),
        "generator": setup.seeds.numpy(f"replay {number}"),
        "device": setup.device.torch,
        "normalizer": setup.normalizer if spec.normalize_obs or spec.normalize_reward else None,
        "normalize_obs": spec.normalize_obs,
        "normalize_reward": spec.normalize_reward,
        "on_device": setup.device.replay_on_device,
    }
    try:
        made = Replay(**arguments) if alpha is None else PrioritizedReplay(**arguments, alpha=alpha)
    except MemoryError as error:
        raise UserError(f"algo.buffer_size={capacity}: its priorities do not fit into memory ({error})") from error
    setup.replays.append(made)
    return made


def build_experiment(
    agent: Agent,
    config: dict[str, Any],
    folder: RunFolder,
    signals: Signals,
    followers: "Followers | None" = None,
    prune: Callable[[int, float], bool] | None = None,
    *,
    until: int | None = None,
    save_first: bool = False,
) -> Experiment:
    """Tie an agent to its run folder, which must exist; `until` ends the run before its total_steps."""
    total_steps = config["total_steps"] if until is None else until
    stop = schema.Stop(**config["stop"])
    title = f"{agent.spec.name}/{folder.record()['algo']}/seed={config['seed']}"
    log = schema.Log(**config["log"])
    console = Console(title, total_steps, enabled=log.console, log_file=folder.path / "run.log")
    facts = Facts.of(folder.record(), config)
    options = {name: config[name] for name in log.trackers}
    mirror = Mirror(folder.path, facts, options, console.notice) if options else None
    checkpoints = Checkpoints(folder.path, config["checkpoint"]["keep"])
    if not checkpoints.steps():  # else their replay is there
        for replay in agent.algorithm.setup.replays:
            replay.ring.reserve()
    return Experiment(
        algorithm=agent.algorithm,
        normalizer=agent.normalizer,
        logger=Logger(folder.path, tensorboard=log.tensorboard, facts=facts, mirror=mirror),
        checkpoints=checkpoints,
        evaluator=agent.evaluator(config["eval"]["max_steps"], signals),
        console=console,
        folder=folder,
        signals=signals,
        seeds=agent.seeds,
        total_steps=total_steps,
        eval=schema.Eval(**config["eval"]),
        checkpoint=schema.Checkpoint(**config["checkpoint"]),
        log=log,
        at_return=stop.at_return,
        after_seconds=seconds(stop.after_time),
        protocol=agent.protocol(),
        fingerprint=agent.fingerprint(),
        followers=followers,
        prune=prune,
        save_first=save_first,
    )


def _check_spaces(algorithm: type[Algorithm], target: str, obs_space: Any, action_space: Any, spec: EnvSpec) -> None:
    if spec.normalize_obs and not (isinstance(obs_space, spaces.Box) and obs_space.dtype.kind == "f"):
        raise UserError(f"env.normalize_obs=true is for vectors of real numbers, and env={spec.name} gives {obs_space}")
    kind = type(action_space).__name__
    if kind not in algorithm.action_spaces:
        raise UserError(
            f"algo={target} cannot act in env={spec.name}: its action space is {action_space}, and this algorithm "
            f"takes {', '.join(algorithm.action_spaces)}; `rlrun list` shows which algorithms take {kind}"
        )
    if algorithm.obs_spaces is not None and type(obs_space).__name__ not in algorithm.obs_spaces:
        raise UserError(
            f"algo={target} cannot learn in env={spec.name}: its observation space is {obs_space}, and this algorithm "
            f"takes {', '.join(algorithm.obs_spaces)}; `rlrun list` shows which algorithms take others"
        )


def _recurrent(network: str, algorithm: type[Algorithm], target: str) -> bool:
    """Say whether the network has a memory. Raises UserError for an algorithm that does not take such."""
    built = _locate(network)
    recurrent = isinstance(built, type) and issubclass(built, RecurrentTorso)
    if recurrent and not algorithm.recurrent:
        raise UserError(
            f"network={network} has a memory, and algo={target} does not take such a one: "
            f"{', '.join(algorithms_that('recurrent'))} do; network=mlp, nature_cnn and others have none"
        )
    return recurrent


def _model(spec: EnvSpec, target: str) -> Model:
    _check_own_rewards(spec)
    if spec.potential is not None:
        raise UserError(
            f"env.potential={spec.potential} is a hint for learning from steps: algo={target} plans with the model and "
            "needs none, leave it out"
        )
    model = spec.model()
    if model is None:
        raise UserError(
            f"algo={target} plans with a known model, and env={spec.name} brings none: frozenlake, frozenlake8x8, "
            "taxi, cliffwalking and three_state_mdp do; algo=q_learning learns without one"
        )
    return model


def _check_own_rewards(spec: EnvSpec) -> None:
    for key in ("clip_reward", "normalize_reward"):
        if getattr(spec, key):
            raise UserError(
                f"env.{key}=true is for networks: a table learns from the rewards as they are, leave it out"
            )


def _construct(config: dict[str, Any], *positional: Any) -> Any:
    return _locate(config["_target_"])(*positional, **_arguments(config))


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_target_"}


def _locate(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def load_policy(agent: Agent, stored: dict[str, Any]) -> None:
    """Give the agent a stored best policy, or the policy out of a full checkpoint's state."""
    agent.algorithm.load_policy_state_dict(stored["policy"] if "policy" in stored else stored["algorithm"])
    agent.normalizer.load_state_dict(stored["normalizer"])
