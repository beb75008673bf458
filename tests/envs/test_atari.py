from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv

from rlrun.envs.atari import Atari, _first_core
from rlrun.envs.base import NO_SEED, Array, Transition
from rlrun.errors import UserError
from rlrun.sweep import CORES

Spec = Callable[..., Atari]
NOOP, FIRE, RIGHT, LEFT = range(4)  # Breakout's actions


def everyone(num_envs: int = 1) -> Array:
    return np.ones(num_envs, bool)


def start(spec: Atari, *seeds: int) -> tuple[Any, Array]:
    envs = spec.make(len(seeds))
    return envs, envs.reset(everyone(len(seeds)), np.array(seeds))


def play(envs: Any, actions: list[int], limit: int = 5000) -> list[Transition]:
    """Play one game by repeating `actions` until it is over."""
    transitions: list[Transition] = []
    while not (transitions and transitions[-1].over[0]):
        assert len(transitions) < limit
        transitions.append(envs.step(np.array([actions[len(transitions) % len(actions)]])))
    return transitions


def twin(**options: Any) -> AtariVectorEnv:
    """Return the reference: ALE's own vector environment of one Breakout under Baselines' protocol."""
    defaults = {"noop_max": 30, "use_fire_reset": True, "reward_clipping": False, "repeat_action_probability": 0.0}
    return AtariVectorEnv("breakout", 1, **{**defaults, **options})


def test_a_lost_life_is_terminated_but_not_over(atari_spec: Spec) -> None:
    envs, _ = start(atari_spec("breakout"), 0)
    transitions = play(envs, [NOOP])
    terminated = [bool(t.terminated[0]) for t in transitions]
    assert sum(terminated) == 5
    assert [bool(t.over[0]) for t in transitions].count(True) == 1
    assert terminated[-1]
    assert transitions[-1].over[0]
    assert not any(t.truncated[0] for t in transitions)


def test_without_life_loss_only_the_end_of_the_game_is_terminated(atari_spec: Spec) -> None:
    envs, _ = start(atari_spec("breakout", life_loss=False), 0)
    transitions = play(envs, [NOOP])
    assert [i for i, t in enumerate(transitions) if t.terminated[0]] == [len(transitions) - 1]
    assert transitions[-1].over[0]


def test_life_loss_changes_nothing_but_the_learners_episodes(atari_spec: Spec) -> None:
    games = []
    for life_loss in (True, False):
        envs, obs = start(atari_spec("breakout", life_loss=life_loss), 3)
        transitions = play(envs, [FIRE, RIGHT, RIGHT, LEFT, LEFT, LEFT])
        games.append([obs.tobytes(), *((t.obs.tobytes(), float(t.reward[0]), bool(t.over[0])) for t in transitions)])
    assert games[0] == games[1]


def test_fire_is_pressed_on_the_step_after_a_lost_life_and_on_no_other(atari_spec: Spec) -> None:
    """The reference presses it by hand; every picture of a whole game must agree."""
    envs, obs = start(atari_spec("breakout"), 1)
    reference = twin()
    reference_obs, info = reference.reset(seed=np.array([1]))
    assert np.array_equal(obs, reference_obs)
    lives, pressed, fire_next = int(info["lives"][0]), 0, False
    chosen = [NOOP, RIGHT, NOOP, LEFT]
    for step, transition in enumerate(play(envs, chosen)):
        pressed += fire_next
        action = FIRE if fire_next else chosen[step % 4]
        reference_obs, _, terminated, _, info = reference.step(np.array([action]))
        fire_next = int(info["lives"][0]) < lives and not terminated[0]
        lives = int(info["lives"][0])
        assert np.array_equal(transition.obs, reference_obs)
    assert pressed == 4


def test_fire_is_not_pressed_where_the_protocol_does_not_say_so(atari_spec: Spec) -> None:
    envs, _ = start(atari_spec("breakout", fire_on_life_loss=False, noop_max=0), 1)
    # Nobody presses FIRE, so there is never a ball that could be lost.
    for _ in range(200):
        transition = envs.step(np.array([NOOP]))
        assert not transition.terminated[0]
        assert not transition.over[0]


def test_a_new_game_does_not_inherit_the_last_ones_fire(atari_spec: Spec) -> None:
    spec = atari_spec("breakout")
    used, _ = start(spec, 0)
    while not used.step(np.array([NOOP])).terminated[0]:
        pass
    fresh, fresh_obs = start(spec, 5)
    assert np.array_equal(used.reset(everyone(), np.array([5])), fresh_obs)
    for _ in range(20):
        assert np.array_equal(used.step(np.array([RIGHT])).obs, fresh.step(np.array([RIGHT])).obs)


def test_a_game_without_lives_ends_when_it_is_over(atari_spec: Spec) -> None:
    envs, _ = start(atari_spec("pong"), 0)
    transitions = play(envs, [NOOP])
    rewards = [float(t.reward[0]) for t in transitions]
    assert sum(rewards) == -21.0  # nobody holds the bat
    assert [i for i, t in enumerate(transitions) if t.terminated[0]] == [len(transitions) - 1]
    assert not transitions[-1].truncated[0]
    after = envs.reset(everyone(), np.array([NO_SEED]))
    assert not np.array_equal(after, transitions[-1].obs)
    assert not envs.step(np.array([NOOP])).over[0]


def test_max_frames_cuts_an_episode_without_terminating_it(atari_spec: Spec) -> None:
    envs, _ = start(atari_spec("pong", max_frames=400, noop_max=0), 0)
    transitions = play(envs, [NOOP], limit=101)
    assert len(transitions) <= 100  # 400 frames, 4 a step
    assert transitions[-1].truncated[0]
    assert not any(t.terminated[0] for t in transitions)


def test_rewards_are_those_of_the_game(atari_spec: Spec) -> None:
    envs, _ = start(atari_spec("breakout", clip_reward=True), 2)
    reference = twin()
    reference.reset(seed=np.array([2]))
    rewards = [float(t.reward[0]) for t in play(envs, [RIGHT, LEFT, LEFT, RIGHT, FIRE])]
    assert sum(rewards) > 0
    envs, _ = start(atari_spec("seaquest", clip_reward=True), 0)
    rng = np.random.default_rng(0)
    assert max(float(envs.step(rng.integers(18, size=1)).reward[0]) for _ in range(400)) == 20.0


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_a_seed_and_the_actions_tell_everything(sticky: float, atari_spec: Spec) -> None:
    spec = atari_spec("breakout", repeat_action_probability=sticky, max_frames=100)
    actions = np.random.default_rng(0).integers(4, size=(60, 2))

    def pictures(envs: Any) -> list[bytes]:
        seen = [envs.reset(everyone(2), np.array([8, 9])).tobytes()]
        for action in actions:
            transition = envs.step(action)
            seen.append(transition.obs.tobytes())
            if transition.over.any():
                seen.append(envs.reset(transition.over, np.full(2, NO_SEED)).tobytes())
        return seen

    used, _ = start(spec, 1, 2)
    for action in actions[:37]:
        used.step(action)
    fresh, _ = start(spec, 3, 4)
    assert pictures(used) == pictures(fresh)


def test_a_masked_reset_leaves_the_other_games_where_they_are(atari_spec: Spec) -> None:
    envs, _ = start(atari_spec("breakout"), 1, 2, 3)
    for _ in range(10):
        before = envs.step(np.full(3, RIGHT)).obs.copy()
    undisturbed, _ = start(atari_spec("breakout"), 1, 2, 3)
    for _ in range(10):
        undisturbed.step(np.full(3, RIGHT))
    after = envs.reset(np.array([False, True, False]), np.array([NO_SEED, 77, NO_SEED]))
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.array_equal(after[1], before[1])
    for _ in range(10):
        a, b = envs.step(np.full(3, LEFT)), undisturbed.step(np.full(3, LEFT))
        assert np.array_equal(a.obs[[0, 2]], b.obs[[0, 2]])


def test_a_reset_of_nobody_returns_the_present_observations(atari_spec: Spec) -> None:
    envs, _ = start(atari_spec("breakout"), 1, 2)
    present = envs.step(np.full(2, RIGHT)).obs.copy()
    assert np.array_equal(envs.reset(np.zeros(2, bool), np.full(2, NO_SEED)), present)


def test_observations_are_not_overwritten_by_later_steps(atari_spec: Spec) -> None:
    envs, first = start(atari_spec("breakout"), 1, 2)
    kept = first.copy()
    second = envs.step(np.full(2, RIGHT)).obs
    second_kept = second.copy()
    for _ in range(5):
        envs.step(np.full(2, LEFT))
    assert np.array_equal(first, kept)
    assert np.array_equal(second, second_kept)


def test_the_spaces_follow_the_specification(atari_spec: Spec) -> None:
    envs = atari_spec("breakout", frame_stack=3, image_size=42, full_action_space=True).make(2)
    assert envs.obs_space.shape == (3, 42, 42)
    assert envs.action_space.n == 18


def test_fire_is_the_right_button_among_all_18_actions(atari_spec: Spec) -> None:
    """With all actions FIRE is still what follows a lost life: five lives are lost without touching anything."""
    envs, _ = start(atari_spec("breakout", full_action_space=True), 0)
    assert sum(bool(t.terminated[0]) for t in play(envs, [NOOP])) == 5


def test_watching_game_0_in_colour_does_not_change_the_games(atari_spec: Spec) -> None:
    spec = atari_spec("breakout", repeat_action_probability=0.25)
    plain, watched = spec.make(1), spec.make(1, render=True)
    obs = [envs.reset(everyone(), np.array([4])) for envs in (plain, watched)]
    assert np.array_equal(*obs)
    pictures = set()
    for _ in range(60):
        a, b = plain.step(np.array([RIGHT])), watched.step(np.array([RIGHT]))
        assert np.array_equal(a.obs, b.obs)
        picture = watched.render()
        assert (picture.shape, picture.dtype) == ((210, 160, 3), np.uint8)
        pictures.add(picture.tobytes())
    assert len(pictures) > 10


def test_an_unknown_game_names_the_nearest(atari_spec: Spec) -> None:
    with pytest.raises(UserError, match=r"env\.game=breakot.*breakout"):
        atari_spec("breakot").make(1)


def test_the_protocol_and_the_rom_are_on_record(atari_spec: Spec) -> None:
    spec = atari_spec("breakout", repeat_action_probability=0.25, life_loss=False)
    assert spec.protocol()["repeat_action_probability"] == 0.25
    assert spec.protocol()["life_loss"] is False
    assert len(spec.versions()["rom_sha256"]) == 64
    assert spec.versions() != atari_spec("pong").versions()


@pytest.mark.parametrize(
    ("num_envs", "cores", "ours", "share", "expected"),
    [
        (8, 2, {0, 1}, None, 0),
        (2, 2, {0, 1}, None, 0),
        (1, 2, {0, 1}, None, -1),  # fewer threads than cores: those of another run may be on the same
        (8, 16, set(range(16)), None, -1),
        (8, 4, {2, 3}, None, -1),  # told to stay on some cores
        (8, 2, {0, 1}, "1", -1),  # runs of a sweep side by side
        (8, 1, {0}, None, -1),
    ],
)
def test_games_threads_have_cores_of_their_own_only_where_they_take_all(
    num_envs: int, cores: int, ours: set[int], share: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: ours)
    monkeypatch.delenv(CORES, raising=False)
    if share is not None:
        monkeypatch.setenv(CORES, share)
    assert _first_core(num_envs) == expected
