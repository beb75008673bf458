"""Shared fixtures: each returns a factory, so that a test states only what it is about."""

import io
import os
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import hydra
import pytest
import torch

from rlrun.build import Agent, build_agent
from rlrun.compose import resolved
from rlrun.config import conf_folder, register_resolvers, validate
from rlrun.envs.atari import Atari
from rlrun.envs.gym import Gym


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keep results independent of the machine and leave its other cores alone."""
    torch.set_num_threads(1)


@pytest.fixture
def compose() -> Callable[..., dict[str, Any]]:
    """Return the function from overrides to the validated configuration, as a command line gives it."""
    register_resolvers()

    def composed(*overrides: str) -> dict[str, Any]:
        return deepcopy(_composed(overrides, os.environ.get("RLRUN_CONFIG_DIR")))

    return composed


@cache
def _composed(overrides: tuple[str, ...], config_dir: str | None) -> dict[str, Any]:
    """Compose once what several tests begin with: it takes a tenth of a second. `config_dir` is looked at, too."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return validate(resolved(hydra.compose("config", list(overrides))))


@pytest.fixture
def make_agent(compose: Callable[..., dict[str, Any]]) -> Callable[..., Agent]:
    """Return the function from overrides to an algorithm with its environments, on one CPU thread."""

    def make(*overrides: str) -> Agent:
        agent = build_agent(compose("device=cpu", "device.threads=1", *overrides))
        torch.set_num_threads(1)
        return agent

    return make


@pytest.fixture
def gym_spec() -> Callable[..., Gym]:
    def spec(id: str, **fields: Any) -> Gym:
        defaults = {
            "name": id,
            "normalize_obs": False,
            "normalize_reward": False,
            "clip_reward": False,
            "potential": None,
            "kwargs": {},
            "module": None,
            "max_episode_steps": None,
            "observe": None,
        }
        return Gym(id=id, **{**defaults, **fields})

    return spec


@pytest.fixture
def atari_spec() -> Callable[..., Atari]:
    """Return the function that makes a game under Baselines' protocol."""

    def spec(game: str, **fields: Any) -> Atari:
        defaults = {
            "name": game,
            "normalize_obs": False,
            "normalize_reward": False,
            "clip_reward": True,
            "potential": None,
            "frame_skip": 4,
            "frame_stack": 4,
            "image_size": 84,
            "repeat_action_probability": 0.0,
            "life_loss": True,
            "fire_on_life_loss": True,
            "noop_max": 30,
            "max_frames": 108_000,
            "full_action_space": False,
        }
        return Atari(game=game, **{**defaults, **fields})

    return spec


@pytest.fixture
def through_disk() -> Callable[[Any], Any]:
    """Return the function that stores a state and loads it as a checkpoint does: plain data only."""

    def store_and_load(state: Any) -> Any:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    return store_and_load
