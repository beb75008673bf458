"""Trials compete on equal budgets: the steps that a run takes, and how many a trial may."""

from typing import Any

from rlrun.errors import UserError
from rlrun.tuning.space import PREFIX, Space

OVERSHOOT = 1.05  # of total_steps


def planned_steps(config: dict[str, Any]) -> int:
    """Return the steps that a run takes: rollouts are finished, and so go beyond total_steps."""
    rollout = config["algo"].get("num_envs", 1) * config["algo"].get("num_steps", 1)
    return int(-(-config["total_steps"] // rollout) * rollout)


def most_steps(config: dict[str, Any]) -> int:
    """Return the steps that a trial may take: about total_steps, or what the present configuration takes.

    Without this, the longest rollout would win small budgets by training for a multiple of them.
    """
    return max(int(OVERSHOOT * config["total_steps"]), planned_steps(config))


def within_budget(space: Space, config: dict[str, Any]) -> tuple[Space, list[str]]:
    """Take out the rollout lengths that would make a run longer than a trial may be, and say which."""
    key, choices = "algo.num_steps", space.get("algo.num_steps")
    if not isinstance(choices, list):
        return space, []

    def fits(num_steps: int) -> bool:
        return planned_steps({**config, "algo": {**config["algo"], "num_steps": num_steps}}) <= most_steps(config)

    fitting = [choice for choice in choices if fits(choice)]
    left_out = ", ".join(str(choice) for choice in choices if not fits(choice))
    if len(fitting) < 2:
        raise UserError(
            f"{PREFIX}{key}={choices}: rollouts so long that total_steps={config['total_steps']} leaves at most one of "
            f"these; fix it, as in {key}={config['algo']['num_steps']}"
        )
    notices = [f"{key}: without {left_out}, whose last rollout would go far beyond total_steps"] if left_out else []
    return {**space, key: fitting}, notices
