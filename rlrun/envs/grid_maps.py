"""How the states of Gymnasium's grid worlds lie on paper, for pictures of tables and policies."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

FLOOR, START, GOAL, TRAP, PASSENGER = " ", "S", "G", "H", "P"  # what a cell is

LEFT, DOWN, RIGHT, UP = "left", "down", "right", "up"
FROZEN_LAKE_ACTIONS = (LEFT, DOWN, RIGHT, UP)
CLIFF_WALKING_ACTIONS = (UP, RIGHT, DOWN, LEFT)
TAXI_ACTIONS = (DOWN, UP, RIGHT, LEFT, "get", "put")
TAXI_STANDS = "RGYB"  # the letters on Taxi's map, in the order of its passenger's places
ABOARD = len(TAXI_STANDS)  # the passenger's place while in the taxi


@dataclass(kw_only=True)
class GridMap:
    """One map: which state each cell shows, and what the cells and the actions are."""

    title: str  # empty where there is one map only
    states: list[list[int]]  # [row][column]
    cells: list[list[str]]  # [row][column], one of the letters above
    actions: tuple[str, ...]  # directions, or words for actions that do not move
    labels: dict[tuple[int, int], str] = field(default_factory=dict)  # (row, column): a name on the map
    walls: set[tuple[int, int]] = field(default_factory=set)  # (row, column) with a wall on the right

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.states), len(self.states[0])


def maps_of(env: gymnasium.Env) -> list[GridMap]:
    """Return the maps of an environment's states; none for an environment that is not known here."""
    inner: Any = env.unwrapped
    makers = {"FrozenLakeEnv": _frozen_lake, "CliffWalkingEnv": _cliff_walking, "TaxiEnv": _taxi}
    maker = makers.get(type(inner).__name__)
    return maker(inner) if maker else []


def _frozen_lake(env: Any) -> list[GridMap]:
    kinds = {b"F": FLOOR, b"S": START, b"H": TRAP, b"G": GOAL}
    cells = [[kinds[bytes(letter)] for letter in row] for row in env.desc]
    return [GridMap(title="", states=_numbered(env.desc.shape), cells=cells, actions=FROZEN_LAKE_ACTIONS)]


def _cliff_walking(env: Any) -> list[GridMap]:
    cells = np.where(env._cliff, TRAP, FLOOR)
    cells.flat[env.start_state_index], cells[-1, -1] = START, GOAL
    return [
        GridMap(title="", states=_numbered(env.shape), cells=cells.tolist(), actions=CLIFF_WALKING_ACTIONS),
    ]


def _taxi(env: Any) -> list[GridMap]:
    """Return a map for each destination and place of the passenger, the place changing fastest."""
    rows, columns = env.max_row + 1, env.max_col + 1
    # Between the letters of desc: ":" lets through, "|" does not.
    walls = {(r, c) for r in range(rows) for c in range(columns - 1) if env.desc[1 + r, 2 * c + 2] == b"|"}
    labels = dict(zip(env.locs, TAXI_STANDS, strict=True))
    maps = []
    for goal, goal_name in enumerate(TAXI_STANDS):
        for place in range(len(TAXI_STANDS) + 1):
            if place == goal:  # the ride is over
                continue
            cells = [[FLOOR] * columns for _ in range(rows)]
            cells[env.locs[goal][0]][env.locs[goal][1]] = GOAL
            if place != ABOARD:
                cells[env.locs[place][0]][env.locs[place][1]] = PASSENGER
            title = f"aboard, to {goal_name}" if place == ABOARD else f"from {TAXI_STANDS[place]} to {goal_name}"
            states = [[int(env.encode(r, c, place, goal)) for c in range(columns)] for r in range(rows)]
            maps.append(
                GridMap(title=title, states=states, cells=cells, actions=TAXI_ACTIONS, labels=labels, walls=walls)
            )
    return maps


def _numbered(shape: tuple[int, int]) -> list[list[int]]:
    return np.arange(shape[0] * shape[1]).reshape(shape).tolist()
