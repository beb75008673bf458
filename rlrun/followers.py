"""The processes of a split run besides the first, and how the first one leads them.

The first process runs the command as if it were alone: folder, checkpoints, logs, evaluations, the console and all
decisions are its own, so that whatever depends on a clock or a signal is decided once. Before it builds the agent,
begins an iteration, saves or ends, it says so to the others, the followers, who do that with it, and nothing else.
They read no command line, write no file and print nothing.
"""

import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from rlrun.algos.algorithm import Algorithm
from rlrun.build import Agent, build_agent
from rlrun.config import import_paths, make_importable
from rlrun.data.collector import Collector
from rlrun.distributed import ProcessLost, World
from rlrun.envs.normalizer import Normalizer
from rlrun.errors import RunFailed, UserError
from rlrun.seeding import GlobalGenerators, seed_global_generators
from rlrun.signals import Signals
from rlrun.stateful import Stateful

State = dict[str, Any]


class Order(IntEnum):
    """What the first process says that all do next."""

    BUILD = 1
    RESTORE = 2
    STEP = 3
    SAVE = 4
    END = 5


class Followers:
    """The other processes, as the first one sees them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._waiting = True  # for an order; if this process fails while they are not, it can only leave
        self.drifts: set[str] = set()  # what their environments found different when they were restored

    def build(self, config: dict[str, Any]) -> None:
        """Let them build the agent of a configuration while this process does."""
        self._order(Order.BUILD)
        self.world.broadcast((config, import_paths()))

    def built(self, fingerprint: dict[str, Any]) -> list[dict[str, Any]]:
        """Wait until all have built theirs; return of each where its fingerprint differs from this process's."""
        others = self.world.everyones(None)[1:]
        self._waiting = True
        return [{key: value for key, value in other.items() if value != fingerprint.get(key)} for other in others]

    def restore(self, state: State, parts: list[State]) -> None:
        """Give them an experiment's state, and each its own part of it; at the beginning there are no parts."""
        self._order(Order.RESTORE)
        shared = {name: state[name] for name in ("normalizer", "algorithm", "generators")}
        self.world.broadcast((on_cpu(shared), parts))
        self.drifts = {drift for drifts in self.world.everyones([]) for drift in drifts}
        self._waiting = True

    def step(self) -> int:
        """Let them begin an iteration with this process; return a signal that one of them has received, or 0."""
        return self._order(Order.STEP)

    def parts(self) -> list[State]:
        """Return of each what it alone knows, as part of a checkpoint."""
        self._order(Order.SAVE)
        parts = self.world.everyones(None)[1:]
        self._waiting = True
        return parts

    def end(self) -> None:
        """Let them go, if they are there to hear it."""
        if self._waiting:
            self._order(Order.END)
            self.world.leave()

    def _order(self, order: Order) -> int:
        self._waiting = False
        return self.world.largest(order, 0)[1]


_present: ContextVar[Followers | None] = ContextVar("the followers of this process", default=None)


def present() -> Followers | None:
    """Return the followers of this process, or None in a run that is not split."""
    return _present.get()


def lead(world: World, command: Callable[[], int]) -> int:
    """Run a command in the first process while the others follow; return its exit code."""
    world.join()
    followers = Followers(world)
    token = _present.set(followers)
    try:
        return command()
    finally:
        _present.reset(token)
        followers.end()


@dataclass(kw_only=True, eq=False)
class Follower(Stateful):
    """What is stored of an experiment besides files, in a process that has none."""

    normalizer: Normalizer  # in the order of Experiment's fields: shared state is saved where first met
    algorithm: Algorithm

    def __post_init__(self) -> None:
        self.generators = GlobalGenerators()

    @classmethod
    def of(cls, agent: Agent) -> "Follower":
        # Weights were drawn alike; an environment that draws from the global generators shall not be like the others'.
        seed_global_generators(agent.seeds.entropy(f"global, process {agent.world.rank}") % 2**63)
        return cls(normalizer=agent.normalizer, algorithm=agent.algorithm)

    def part(self) -> State:
        """Return what is not the same in all processes."""
        state = self.state_dict()
        own = [name for name, value in vars(self.algorithm).items() if isinstance(value, Collector)]
        return {"generators": state["generators"], "algorithm": {name: state["algorithm"][name] for name in own}}

    def restore(self, shared: State, parts: list[State]) -> list[str]:
        """Become what the first process is, but for this one's part; return how environments have drifted."""
        own = parts[self.algorithm.setup.world.rank - 1] if parts else self.part()
        algorithm = {**shared["algorithm"], **own["algorithm"]}
        self.load_state_dict({**shared, "algorithm": algorithm, "generators": own["generators"]})
        return [c.envs.drift for c in self.algorithm.setup.collectors if c.envs.drift]


class Following:
    """Does in a follower what the first process orders."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._agent: Agent | None = None
        self._follower: Follower | None = None

    def do(self, order: Order) -> None:
        """Do one order, along with the first process."""
        if order == Order.BUILD:
            config, paths = self.world.broadcast()
            make_importable(paths)
            self._agent = build_agent(config, world=self.world)
            self._follower = Follower.of(self._agent)
            self.world.everyones(self._agent.fingerprint())
            return
        assert self._follower is not None
        if order == Order.RESTORE:
            self.world.everyones(self._follower.restore(*self.world.broadcast()))
        elif order == Order.STEP:
            self.world.averaged(self._follower.algorithm.step())
            for collector in self._follower.algorithm.setup.collectors:
                collector.pop_episodes()  # which the first process logs
        elif order == Order.SAVE:
            self.world.everyones(on_cpu(self._follower.part()))

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()


def follow(world: World) -> int:
    """Take part in a run as a process that is not the first; return the exit code."""
    following = Following(world)
    with Signals(quiet=True) as signals:
        try:
            world.join()
            while (order := Order(world.largest(0, signals.received or 0)[0])) != Order.END:
                following.do(order)
            world.leave()
        except ProcessLost:  # of which the first process speaks, unless it is the lost one and has spoken
            return 1
        except (UserError, RunFailed) as error:
            world.report_failure(str(error))
            return 2
        except Exception as error:
            world.report_failure(f"{type(error).__name__}: {error}")
            print(f"process {world.rank}: {traceback.format_exc()}", file=sys.stderr)
            return 1
        finally:
            following.close()
    return 0


def on_cpu(state: State) -> State:
    """Return a state whose tensors can be sent: the receiver's devices are others."""
    moved: State = tree_map_only(Tensor, torch.Tensor.cpu, state)
    return moved
