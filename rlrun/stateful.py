"""State for free: an object saves whatever it holds, and refuses what it cannot save.

Exact resume fails by forgetting: one counter or one generator that nobody thought of. Here nobody has to
think of it. `Stateful.state_dict` walks every attribute of the object, deep, and an attribute that it
does not know how to save is an error on the first checkpoint, not a silent difference after a crash.

Configuration is not state. In a dataclass, a field that holds a plain value is configuration (it comes
from the YAML, and an override on resume must win over what was stored); everything else is state.
"""

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

# Objects met during the walk in progress, by identity: a collector that hangs on two owners is saved once.
_seen: ContextVar[dict[int, object] | None] = ContextVar("_seen", default=None)

# weights_only refuses arrays; they are stored as tensors, under a key that says what they were.
ARRAY = "__ndarray__"


class StateMismatch(Exception):
    """A stored state that does not fit the object: it has other attributes, or tensors of another shape."""


class Stateful:
    """Give a class `state_dict` and `load_state_dict` over all of its attributes.

    `transient` names the attributes that carry nothing from one step to the next (preallocated buffers).
    """

    transient: ClassVar[frozenset[str]] = frozenset()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors, loadable under `weights_only=True`.

        Raises TypeError for an attribute that has no plain form and no `state_dict` of its own.
        """
        with _one_walk():
            return {name: _capture(getattr(self, name), _label(self, name)) for name in self._state_names()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned. Raises StateMismatch where the two differ."""
        names = set(self._state_names())
        if names != state.keys():
            missing, extra = sorted(names - state.keys()), sorted(state.keys() - names)
            raise StateMismatch(f"{type(self).__name__}: the stored state lacks {missing} and has unknown {extra}")
        with _one_walk():
            for name, saved in state.items():
                current = getattr(self, name)
                restored = _restore(current, saved, _label(self, name))
                if restored is not current:
                    setattr(self, name, restored)

    def _state_names(self) -> list[str]:
        configuration: set[str] = {f.name for f in fields(self)} if is_dataclass(self) else set()
        return [
            name
            for name, value in vars(self).items()
            if name not in self.transient and (name not in configuration or hasattr(value, "state_dict"))
        ]


def named_tensors(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield ("net.policy_head.logits.weight", tensor) for each tensor in a state of nested dicts."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from named_tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield prefix + name, value


@contextmanager
def _one_walk() -> Iterator[None]:
    """Start the list of objects met, unless an outer `state_dict` started it already."""
    if _seen.get() is not None:
        yield
        return
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def _first_meeting(value: object) -> bool:
    seen = _seen.get()
    assert seen is not None
    if id(value) in seen:
        return False
    seen[id(value)] = value
    return True


def _label(owner: object, name: str) -> str:
    return f"{type(owner).__name__}.{name}"


def _capture(value: Any, label: str) -> Any:
    if isinstance(value, np.generic):  # first: numpy's float64 is a float, too, but not for weights_only
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value.detach() if isinstance(value, Tensor) else value
    if isinstance(value, np.ndarray):
        return {ARRAY: _tensor(value, label)}
    if isinstance(value, np.random.Generator):
        return _capture(value.bit_generator.state, label)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        # A CPU's generator and a GPU's have states of different kinds.
        return {"device": value.device.type, "state": value.get_state()}
    if isinstance(value, list | tuple | deque):
        items = [_capture(item, f"{label}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {key: _capture(item, f"{label}[{key!r}]") for key, item in value.items()}
    if hasattr(value, "state_dict"):
        return value.state_dict() if _first_meeting(value) else None
    raise TypeError(
        f"{label} is a {type(value).__name__}, which has no plain form: give it state_dict() and "
        f"load_state_dict(), make it a dataclass field if it is configuration, or name it in `transient`"
    )


def _restore(current: Any, saved: Any, label: str) -> Any:
    """Return what the attribute shall hold: `current`, changed in place where others may refer to it."""
    if isinstance(current, np.random.Generator):
        current.bit_generator.state = _plain(saved)
    elif isinstance(saved, dict) and ARRAY in saved:
        return _plain(saved)
    elif isinstance(current, random.Random):
        version, internal, gauss = saved
        current.setstate((version, tuple(internal), gauss))
    elif isinstance(current, torch.Generator):
        # On another kind of device the fresh generator stays; the run says what it drops (Experiment).
        if saved["device"] == current.device.type:
            current.set_state(saved["state"].cpu())
    elif isinstance(current, Tensor) and isinstance(saved, Tensor):
        if current.shape != saved.shape or current.dtype != saved.dtype:
            if isinstance(current, nn.Parameter):
                raise StateMismatch(f"{label}: stored {tuple(saved.shape)}, expected {tuple(current.shape)}")
            return saved.to(current.device)
        with torch.no_grad():
            current.copy_(saved)
    elif isinstance(current, deque):
        return deque(_plain(saved), maxlen=current.maxlen)
    elif isinstance(current, list | tuple):
        if len(current) == len(saved):
            return type(current)(
                _restore(c, s, f"{label}[{i}]") for i, (c, s) in enumerate(zip(current, saved, strict=True))
            )
        return type(current)(_plain(saved))
    elif isinstance(current, dict):
        return {k: _restore(current[k], s, f"{label}[{k!r}]") if k in current else _plain(s) for k, s in saved.items()}
    elif hasattr(current, "load_state_dict"):
        if _first_meeting(current):
            _load(current, saved, label)
    else:
        return _plain(saved)
    return current


def _load(current: Any, saved: Any, label: str) -> None:
    if not isinstance(current, nn.Module | torch.optim.Optimizer):
        current.load_state_dict(saved)
        return
    try:
        current.load_state_dict(saved)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise StateMismatch(f"{label}: {error}") from error


def _tensor(value: np.ndarray, label: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except TypeError as error:
        raise TypeError(f"{label} is an array of {value.dtype}, which has no plain form: {error}") from error


def _plain(saved: Any) -> Any:
    """Undo what `_capture` did to arrays where there is no present value to tell: in lists, dicts, under None."""
    if isinstance(saved, dict):
        return saved[ARRAY].numpy().copy() if ARRAY in saved else {k: _plain(v) for k, v in saved.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(_plain(item) for item in saved)
    return saved
