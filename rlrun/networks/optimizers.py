"""Optimizers that published settings need and torch does not have, or has with more around them than it takes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Moments(torch.optim.Optimizer, ABC):
    """The base of optimizers that keep moments of each weight's gradient, and move all weights of a group at once."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        hooked = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        step = torch.optim.Optimizer.profile_hook_step(Moments._step) if hooked else Moments._step
        return step(self, closure)

    # Or torch wraps `step` in calls of the hooks and an entry in its profile, which take longer than Adam's kernel does
    # where networks are small.
    step.hooked = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _step(self, closure: Callable[[], float] | None) -> float | None:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.move(group, params, [p.grad for p in params])
        return loss

    @abstractmethod
    def move(self, group: dict[str, Any], params: list[Tensor], grads: list[Any]) -> None:
        """Take a step with the weights of a group that have a gradient."""

    def moment(self, param: Tensor, name: str, init: float = 0.0) -> Tensor:
        """Return a moment of a weight's gradient, made with this value the first time."""
        state = self.state[param]
        if name not in state:
            state[name] = torch.full_like(param, init)
        return state[name]


class Adam(Moments):
    """Adam: moments of the gradient, and steps of about the learning rate whatever its size.

    Kingma and Ba (2015), "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 1. The arithmetic
    is torch's one kernel for all of it, which reads and writes weights and moments once. torch's own class around it
    counts steps for each weight apart, and takes longer than the kernel where networks are small.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, eps: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "betas": betas, "step": 0})

    def move(self, group: dict[str, Any], params: list[Tensor], grads: list[Any]) -> None:
        group["step"] += 1
        step = torch.full((), float(group["step"]), device=params[0].device)
        torch._fused_adam_(
            params,
            grads,
            [self.moment(p, "mean") for p in params],
            [self.moment(p, "square") for p in params],
            [],
            [step] * len(params),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if any("step" not in group for group in state["param_groups"]):
            raise ValueError("the stored optimizer is torch's Adam, of an earlier version")
        super().load_state_dict(state)


class RMSpropTF(Moments):
    """RMSProp as TensorFlow has it: epsilon inside the square root, squares that start at one.

    The published A2C and DQN scores were reached with this variant. Starting the squares at one keeps the
    first steps small; torch's starts at zero, which makes them as large as the learning rate over
    sqrt(1 - alpha). `centered` divides by the deviation instead, as Mnih et al. (2015) did for DQN.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        alpha: float,
        eps: float,
        square_init: float = 1.0,
        centered: bool = False,
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "square_init": square_init, "centered": centered}
        super().__init__(params, defaults)

    def move(self, group: dict[str, Any], params: list[Tensor], grads: list[Any]) -> None:
        squares = [self.moment(p, "square", group["square_init"]) for p in params]
        torch._foreach_mul_(squares, group["alpha"])
        torch._foreach_addcmul_(squares, grads, grads, 1 - group["alpha"])
        roots = torch._foreach_add(squares, group["eps"])
        if group["centered"]:
            means = [self.moment(p, "mean") for p in params]
            torch._foreach_lerp_(means, grads, 1 - group["alpha"])
            torch._foreach_addcmul_(roots, means, means, -1)
        torch._foreach_sqrt_(roots)
        torch._foreach_addcdiv_(params, grads, roots, -group["lr"])

    def share_memory(self) -> None:
        """Move the moments to memory that forked processes share, made if this is before the first step."""
        for group in self.param_groups:
            for param in group["params"]:
                self.moment(param, "square", group["square_init"]).share_memory_()
                if group["centered"]:
                    self.moment(param, "mean").share_memory_()
