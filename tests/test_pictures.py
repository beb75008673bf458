"""Pictures of tables are looked at by people; here stands what a person would notice if it were wrong."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from rlrun.envs.base import Array
from rlrun.envs.grid_maps import GridMap
from rlrun.envs.gym import Gym
from rlrun.envs.tabular import Model
from rlrun.painter import INK, PAPER, RAMP, Colors, readable_on, short_number
from rlrun.pictures import GOAL_COLOR, MARGIN, TRAP_COLOR, on_maps, rows_of_numbers, table_pictures, value_pictures

Spec = Callable[..., Gym]
DARKEST, BRIGHTEST = RAMP[0], RAMP[-1]


def known(spec: Gym) -> Model:
    model = spec.model()
    assert model is not None
    return model


def pixels(png: bytes) -> Array:
    """Return [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def cell_size(png: bytes, grid: GridMap) -> int:
    return (pixels(png).shape[1] - 2 * MARGIN) // grid.shape[1]


def color_at(png: bytes, grid: GridMap, state: int, x: float, y: float) -> tuple[int, ...]:
    """Return the colour at a place in the cell of a state, in parts of the cell."""
    row, column = np.argwhere(np.array(grid.states) == state)[0]
    cell = cell_size(png, grid)
    return tuple(pixels(png)[int(MARGIN + (row + y) * cell), int(MARGIN + (column + x) * cell)].tolist())


@pytest.fixture
def lake(gym_spec: Spec) -> GridMap:
    (grid,) = known(gym_spec("FrozenLake-v1")).maps
    return grid


def test_values_are_colours_from_dark_to_bright_and_holes_and_goal_have_their_own(lake: GridMap) -> None:
    value = np.zeros(16)
    value[[14, 5, 15]] = 1.0, 99.0, -99.0  # a hole and the goal, whose values mean nothing
    png = on_maps(value, None, [lake])
    corner = (0.9, 0.1)
    assert color_at(png, lake, 14, *corner) == BRIGHTEST
    assert color_at(png, lake, 1, *corner) == DARKEST
    assert color_at(png, lake, 5, *corner) == TRAP_COLOR
    assert color_at(png, lake, 15, *corner) == GOAL_COLOR


@pytest.mark.parametrize(("action", "front"), [(0, "left"), (1, "bottom"), (2, "right"), (3, "top")])
def test_an_arrows_head_is_where_the_action_goes(action: int, front: str, lake: GridMap) -> None:
    png = on_maps(np.zeros(16), np.full(16, action), [lake])
    cell = cell_size(png, lake)
    inside = pixels(png)[MARGIN + 2 : MARGIN + int(0.82 * cell), MARGIN + cell + 2 : MARGIN + 2 * cell - 2]
    ink = (inside == readable_on(Colors(0, 0)(0))).all(axis=-1)[: int(0.64 * cell)]  # above the number
    rows, columns = np.argwhere(ink).T
    y, x = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    halves = {"left": columns < x, "right": columns > x, "top": rows < y, "bottom": rows > y}
    assert max(halves, key=lambda half: halves[half].sum()) == front


def test_each_triangle_has_its_own_actions_colour(lake: GridMap) -> None:
    q = np.zeros((16, 4))
    for action, place in enumerate([(0.08, 0.35), (0.35, 0.92), (0.92, 0.35), (0.35, 0.08)]):  # left down right up
        one = q.copy()
        one[6, action] = 1.0
        png = on_maps(one, None, [lake])
        assert color_at(png, lake, 6, *place) == BRIGHTEST
        assert color_at(png, lake, 2, *place) == DARKEST


def test_taxi_has_a_map_for_each_ride_with_every_state_that_can_be_met(gym_spec: Spec) -> None:
    model = known(gym_spec("Taxi-v4"))
    assert [grid.title for grid in model.maps][:4] == ["from G to R", "from Y to R", "from B to R", "aboard, to R"]
    shown = [state for grid in model.maps for row in grid.states for state in row]
    assert len(shown) == len(set(shown)) == 400
    assert set(np.flatnonzero(model.start).tolist()) < set(shown)
    # A wall is between two cells just when the taxi cannot pass.
    grid = model.maps[0]
    for row, states in enumerate(grid.states):
        for column in range(4):
            passes = model.outcomes[states[column]][2][0][1] == states[column + 1]
            assert passes == ((row, column) not in grid.walls)


@pytest.mark.parametrize(
    ("id", "names"),
    [
        ("FrozenLake-v1", ["policy", "q_values"]),
        ("FrozenLake8x8-v1", ["policy", "q_values"]),
        ("CliffWalking-v1", ["policy", "q_values"]),
        ("Taxi-v4", ["policy"]),
    ],
)
def test_the_moves_on_a_map_are_the_models(id: str, names: list[str], gym_spec: Spec) -> None:
    model = known(gym_spec(id, kwargs={"is_slippery": False} if "Lake" in id else {}))
    assert list(table_pictures(np.zeros((model.num_states, model.num_actions)), model.maps)) == names
    grid = model.maps[0]
    moves = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    row, column = {"FrozenLake-v1": (2, 1), "Taxi-v4": (2, 2)}.get(id, (1, 1))  # from where all four are free
    for action, name in enumerate(grid.actions):
        if name in moves:
            dr, dc = moves[name]
            assert model.outcomes[grid.states[row][column]][action][0][1] == grid.states[row + dr][column + dc]


def test_states_without_a_map_are_rows_of_numbers_and_missing_actions_are_left_blank() -> None:
    q = np.array([[1.0, 2.0], [-np.inf, 0.0]])
    pictures = table_pictures(q, [])
    assert list(pictures) == ["q_values"]
    assert pictures["q_values"] == rows_of_numbers(q)
    colours = {tuple(c) for c in pixels(pictures["q_values"]).reshape(-1, 3).tolist()}
    assert {DARKEST, BRIGHTEST, PAPER} <= colours
    assert pixels(rows_of_numbers(np.zeros((5_000, 2)))).shape[1] < 2_000  # the first 200 are shown


def test_a_random_policy_has_no_arrows_and_a_certain_one_has(lake: GridMap) -> None:
    value = np.zeros(16)
    without = value_pictures(value, np.full((16, 4), 0.25), [lake])["values"]
    certain = value_pictures(value, np.eye(4)[np.full(16, 2)], [lake])["values"]
    assert without == on_maps(value, None, [lake])
    assert certain == on_maps(value, np.full(16, 2), [lake])


def test_numbers_are_short_and_stand_out() -> None:
    shown = [short_number(v) for v in (0.0, -0.123, 9.99, 9.999, -55.55, 123.45, -12345.0)]
    assert shown == ["0.00", "-0.12", "9.99", "10.0", "-55.5", "123.5", "-1.2e+04"]
    assert readable_on(BRIGHTEST) == INK
    assert readable_on(DARKEST) == PAPER


def test_the_same_table_gives_the_same_bytes(lake: GridMap) -> None:
    q = np.random.default_rng(0).normal(size=(16, 4))
    assert table_pictures(q, [lake]) == table_pictures(q, [lake])
