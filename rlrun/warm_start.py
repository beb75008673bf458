"""`init_from=RUN`: begin with the weights of a stored run's policy.

Weights are matched by name and shape, so that a policy also moves to another algorithm or environment as far as it
fits: a clone of an expert to PPO, say. How the algorithm calls the network does not matter where the names inside it
are unmistakable. What does not fit stays as it was initialised.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rlrun.build import Agent
from rlrun.errors import RunFailed, UserError
from rlrun.inspect_run import load
from rlrun.run_folder import RunFolder
from rlrun.stateful import ARRAY, named_tensors

MOST_NAMED = 4


@dataclass(frozen=True)
class Source:
    """The policy to begin with."""

    origin: dict[str, Any]  # which run it is of, and which of its checkpoints
    weights: dict[str, Tensor]  # by dotted name: net.policy_head.logits.weight
    obs_moments: dict[str, Any] | None  # of its normaliser, if it saw normalised observations

    @property
    def name(self) -> str:
        kind, step = self.origin["checkpoint"], self.origin["step"]
        return f"{self.origin['run']} ({self.origin['algo']} on {self.origin['env']}, {kind} policy, step {step:,})"

    def name_for(self, name: str, own: Tensor) -> str | None:
        """Return which of the weights fits one of that name in this run, or None."""
        inside = [other for other in self.weights if _inside(other) == _inside(name)]
        found = name if name in self.weights else inside[0] if len(inside) == 1 else None
        if found is None or (self.weights[found].shape, self.weights[found].dtype) != (own.shape, own.dtype):
            return None
        return found


def source_of(config: dict[str, Any]) -> Source | None:
    """Return what `init_from` names. Raises UserError where there is no such policy."""
    path, checkpoint = config["init_from"], config["init_checkpoint"]
    if path is None:
        return None
    if not RunFolder(Path(path)).exists():
        raise UserError(
            f"init_from={path} is not a run folder: expected one that `rlrun ls` shows, such as "
            "outputs/cartpole/ppo/default/seed=0"
        )
    try:
        run = load(path, checkpoint, {"kind": "cpu"})
    except (UserError, RunFailed) as error:
        raise UserError(f"init_from={path} init_checkpoint={checkpoint}: {error}") from error
    normalizes = run.agent.spec.normalize_obs
    source = Source(
        origin=run.origin(checkpoint),
        weights=dict(named_tensors(run.agent.algorithm.policy_state_dict())),
        obs_moments=run.agent.normalizer.obs_moments.state_dict() if normalizes else None,
    )
    run.agent.close()
    return source


def warm_start(agent: Agent, source: Source) -> dict[str, Any]:
    """Give an agent that has not learned anything yet what fits of a policy; return that for the run's record.

    Observation statistics come along where both runs normalise observations of one shape. Raises UserError if not one
    weight fits.
    """
    algorithm = agent.algorithm
    state = algorithm.policy_state_dict()
    own = dict(named_tensors(state))
    first_name = first_names(own)
    found = {name: source.name_for(first_name[name], tensor) for name, tensor in own.items()}
    taken = {name: theirs for name, theirs in found.items() if theirs is not None}
    if not taken:
        raise UserError(
            f"init_from={source.origin['run']}: none of its weights fits this run by name and shape. It has "
            f"{shapes(source.weights)}; expected are {shapes(own)}. Choose an algorithm with the same kind of policy, "
            "the same network, and an environment with the same spaces"
        )
    algorithm.warm_start(replaced(state, {name: source.weights[theirs] for name, theirs in taken.items()}))
    own_moments, statistics = agent.normalizer.obs_moments, source.obs_moments if agent.spec.normalize_obs else None
    if statistics is not None and statistics["mean"][ARRAY].shape != own_moments.mean.shape:
        statistics = None
    if statistics is not None:
        own_moments.load_state_dict(statistics)
    copies = {f"target_{name}" for name in algorithm.acting_networks()}
    others = algorithm.networks().keys() - algorithm.acting_networks().keys() - copies
    return {
        **source.origin,
        "taken": list(taken),
        "fresh": [*(name for name in own if name not in taken), *sorted(others)],
        "left_behind": [name for name in source.weights if name not in taken.values()],
        "obs_statistics": statistics is not None,
    }


def first_names(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return the first name of each tensor: a torso that policy and value share is there under two names."""
    by_place: dict[tuple[Any, ...], str] = {}
    return {
        name: by_place.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        for name, tensor in tensors.items()
    }


def _inside(name: str) -> str:
    """Return a weight's name inside its network: policy_head.logits.weight of net.policy_head.logits.weight."""
    return name.partition(".")[2]


def replaced(state: dict[str, Any], tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """Return a state of nested dicts with other tensors in the place of some, by dotted name."""
    return {
        name: replaced(value, tensors, f"{prefix}{name}.")
        if isinstance(value, dict)
        else tensors.get(f"{prefix}{name}", value)
        for name, value in state.items()
    }


def told(source: Source, facts: dict[str, Any], normalizes: bool) -> str:
    """Say what a run begins with, in lines for the console."""
    taken, fresh = facts["taken"], facts["fresh"]
    lines = [f"init_from: {len(taken)} weights of {source.name}"]
    if fresh:
        lines.append(f"  stay as they were initialised: {some(fresh)}")
    if facts["left_behind"]:
        lines.append(f"  left behind: {some(facts['left_behind'])}")
    if facts["obs_statistics"]:
        lines.append("  the statistics that normalise observations come along")
    elif normalizes != (source.obs_moments is not None):
        lines.append(
            f"  note: env.normalize_obs={str(normalizes).lower()} here and not there, so that its weights see other "
            "numbers than they were trained on"
        )
    elif normalizes:
        lines.append("  the statistics that normalise observations begin anew: observations have another shape there")
    return "\n".join(lines)


def some(names: list[str]) -> str:
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def shapes(tensors: dict[str, Tensor]) -> str:
    """Return "net.value_head.weight [1, 64], ..." for some tensors."""
    return some([f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()]) or "none"
