"""The README of an exported policy: how well it does, how to use it, how it came about."""

from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch

from rlrun.analysis.statistics import mean, stratified_interval
from rlrun.envs.atari import Atari
from rlrun.envs.gym import Gym
from rlrun.exported_policy import ExportedPolicy
from rlrun.inspect_run import LoadedRun
from rlrun.logger import EVALUATIONS, read_rows
from rlrun.run_folder import RunFolder

CARD = """\
---
library_name: rlrun
tags: [reinforcement-learning, {algo}, {env}]
---

# {algo} on {env}

A policy of {algo}, trained with rlrun for {steps:,} environment steps (seed {seed}).

## Result

{result}

| protocol | |
|---|---|
{protocol}

## Use

`policy.onnx` needs onnxruntime and nothing of rlrun. Observation normalisation, where there is any, is inside.

| | name | shape | type | |
|---|---|---|---|---|
{graph}

{acting}

```python
{snippet}
```

`policy.safetensors` holds the weights of the same policy{normalizer}.

{checked}

## How it was trained

```
{command}
```

{provenance}

`config.yaml` has all keys. In the run's folder, `rlrun reproduce RUN` trains it again and compares every bit.
"""

EPISODE = """\
{imports}
import onnxruntime

policy = onnxruntime.InferenceSession("policy.onnx")
{make}
obs, _ = env.reset(seed=0)
total, over = 0.0, False
while not over:
    (action,) = policy.run(["action"], {{"obs": np.asarray(obs)[None]}})
    obs, reward, terminated, truncated, _ = env.step(action[0])
    total, over = total + float(reward), terminated or truncated
print(total)"""

ATARI = """\
import numpy as np
import onnxruntime
from ale_py.vector_env import AtariVectorEnv

policy = onnxruntime.InferenceSession("policy.onnx")
env = AtariVectorEnv(
    {arguments}
)
obs, info = env.reset(seed=0)
total, over = 0.0, False{before}
while not over:
    (action,) = policy.run(["action"], {{"obs": obs}}){instead}
    obs, reward, terminated, truncated, info = env.step(action){after}
    total, over = total + float(reward[0]), bool(terminated[0] or truncated[0])
print(total)"""
# The ball of some games is served by FIRE, which the protocol presses after a lost life.
BEFORE = """
buttons = [button.name for button in env.ale.get_action_set()]
lives, lost = info["lives"], False"""
INSTEAD = """
    if lost and "FIRE" in buttons:
        action = np.array([buttons.index("FIRE")])"""
AFTER = """
    lives, lost = info["lives"], bool(info["lives"] < lives)"""

CALL = """\
import numpy as np
import onnxruntime

policy = onnxruntime.InferenceSession("policy.onnx")
obs = np.zeros({shape}, np.{dtype})  # observations as the environment gives them
(action,) = policy.run(["action"], {{"obs": obs}})"""


@dataclass
class Card:
    """What the card of one exported policy is made of."""

    run: LoadedRun
    policy: ExportedPolicy
    checked: str
    checkpoint: str  # best, last or a step
    sampled: bool  # evaluation draws its actions, and the exported policy does not

    def text(self) -> str:
        record = RunFolder(self.run.path).record()
        acts = record["protocol"]["policy"].partition(", ")[2]  # greedy or sampled; the stamp is the last policy's
        return CARD.format(
            algo=record["algo"],
            env=record["env"],
            seed=record["seed"],
            steps=self.run.step,
            result=self.result(),
            protocol=_rows({**record["protocol"], "policy": f"{self.checkpoint}, {acts}"}),
            graph=self.graph(),
            acting=self.acting(),
            snippet=snippet(self.run),
            normalizer=", and mean and variance of observations" if self.policy.normalized else "",
            checked=self.checked[0].upper() + self.checked[1:] + ".",
            command=record["command"],
            provenance=provenance(record),
        )

    def result(self) -> str:
        """Say what the policy scores, with the interval that its episodes give."""
        folder = RunFolder(self.run.path)
        final = folder.result()
        if final is not None and final["steps"] == self.run.step and self.checkpoint != "best":
            return (
                f"Return {_interval(final['returns'])}, on seeds that neither trained nor chose it. The interval is "
                "over the episodes of one policy; how much training runs differ takes several seeds to tell."
            )
        rows = [row for row in read_rows(folder.path / EVALUATIONS) if row["step"] == self.run.step]
        if rows and self.checkpoint == "best":
            return (
                f"Return {_interval(rows[-1]['returns'])}, in the evaluation that chose it among those of its run: "
                "expect less on other episodes. `rlrun eval RUN checkpoint=best` tells how much."
            )
        if rows:
            return f"Return {_interval(rows[-1]['returns'])}, in an evaluation during training."
        return "Not evaluated: the run is not finished, and this is a policy on the way."

    def graph(self) -> str:
        """Return the rows of the table of inputs and outputs."""
        obs = self.policy.random_obs(1)
        with torch.no_grad():
            outputs = dict(zip(self.policy.names, self.policy(obs), strict=True))
        scores = "log-probabilities" if self.scores_are_log_probs() else "values"
        lines = [_graph_row("input", "obs", obs, "as the environment gives it")]
        for name, tensor in outputs.items():
            meaning = "for the environment's `step`" if name == "action" else f"{scores}; the action is the highest"
            lines.append(_graph_row("output", name, tensor, meaning))
        return "\n".join(lines)

    def acting(self) -> str:
        """Say how the exported policy acts, and how the scored one did where that differs."""
        if not self.sampled:
            return "The policy is greedy, as it was when it was scored."
        text = (
            "The exported policy is greedy. **The result above is that of one that also acts at random, as its "
            "protocol says.**"
        )
        return text + (" To act like that, draw from softmax(scores)." if self.scores_are_log_probs() else "")

    def scores_are_log_probs(self) -> bool:
        obs = self.policy.random_obs(64)
        with torch.no_grad():
            scores = self.policy(obs)[1:]
        return bool(scores) and all(torch.allclose(s.exp().sum(-1), torch.ones(len(obs)), atol=1e-4) for s in scores)


def provenance(record: dict[str, Any]) -> str:
    """Return code, versions, machine and what happened on the way, one line each."""
    code, packages = record.get("code", {}), record.get("packages", {})
    fingerprint = record.get("fingerprint", {})
    commit = code.get("commit", "unknown") + (", with uncommitted changes" if code.get("dirty_diff") else "")
    lines = [
        f"- commit {commit}",
        f"- Python {record.get('python')}, " + ", ".join(f"{name} {version}" for name, version in packages.items()),
        f"- {fingerprint.get('device')}, {fingerprint.get('processor')}, threads: {fingerprint.get('threads')}, "
        f"{fingerprint.get('precision')}",
        f"- started {record.get('started')}",
    ]
    for event in record.get("lineage", []):
        details = event.get("changed") or event.get("because") or ""
        lines.append(f"- {event['event']} {event.get('time', '')} {details}".rstrip())
    return "\n".join(lines)


def snippet(run: LoadedRun) -> str:
    """Return a program that plays an episode with the exported policy and without rlrun."""
    spec = run.agent.spec
    if type(spec) is Gym:
        return _gym_snippet(spec)
    if type(spec) is Atari:
        return _atari_snippet(spec)
    space = run.agent.algorithm.setup.obs_space
    return CALL.format(shape=(1, *(space.shape or ())), dtype=np.dtype(space.dtype).name)


def _gym_snippet(spec: Gym) -> str:
    arguments = [f'"{spec.id}"', *(f"{name}={value!r}" for name, value in spec.kwargs.items())]
    if spec.max_episode_steps is not None:
        arguments.append(f"max_episode_steps={spec.max_episode_steps}")
    env = replace(spec, observe=None).make_one()
    flattened = isinstance(env, gymnasium.wrappers.FlattenObservation)
    env.close()
    make = f"gymnasium.make({', '.join(arguments)})"
    if flattened:
        make = f"gymnasium.wrappers.FlattenObservation({make})"
    if spec.observe is not None:
        make = f"gymnasium.wrappers.TransformObservation({make}, lambda obs: obs[{spec.observe}], None)"
    imports = "import gymnasium\nimport numpy as np" + (f"\nimport {spec.module}" if spec.module else "")
    return EPISODE.format(imports=imports, make=f"env = {make}")


def _atari_snippet(spec: Atari) -> str:
    arguments = {
        "max_num_frames_per_episode": spec.max_frames,
        "repeat_action_probability": spec.repeat_action_probability,
        "full_action_space": spec.full_action_space,
        "img_height": spec.image_size,
        "img_width": spec.image_size,
        "stack_num": spec.frame_stack,
        "frameskip": spec.frame_skip,
        "noop_max": spec.noop_max,
        "use_fire_reset": spec.fire_on_life_loss,
        "reward_clipping": False,
    }
    lines = [f'"{spec.game}", num_envs=1', *(f"{name}={value!r}" for name, value in arguments.items())]
    fire = (BEFORE, INSTEAD, AFTER) if spec.fire_on_life_loss else ("", "", "")
    return ATARI.format(
        arguments=",\n    ".join(lines) + ",", **dict(zip(("before", "instead", "after"), fire, strict=True))
    )


def _interval(returns: list[float]) -> str:
    low, high = stratified_interval(mean, [np.array(returns)], np.random.default_rng(0))
    spread = f" (95% interval {low:.2f} to {high:.2f})" if low == low else ""
    return f"{np.mean(returns):.2f}{spread} over {len(returns)} episodes"


def _graph_row(kind: str, name: str, tensor: torch.Tensor, meaning: str) -> str:
    shape = ", ".join(["B", *map(str, tensor.shape[1:])])
    return f"| {kind} | `{name}` | [{shape}] | {str(tensor.dtype).removeprefix('torch.')} | {meaning} |"


def _rows(facts: dict[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())
