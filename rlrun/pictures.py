"""Pictures of tables, as PNGs: on the maps of grid worlds, or as rows of numbers where there is no map.

S states, A actions. Lengths in pixels.
"""

import numpy as np

from rlrun.envs.base import Array
from rlrun.envs.grid_maps import DOWN, GOAL, LEFT, PASSENGER, RIGHT, START, TRAP, UP, GridMap
from rlrun.painter import INK, PAPER, Color, Colors, Painter, Point, readable_on, short_number

MAP_SIZE, CELL_LARGEST, CELL_SMALLEST = 768, 80, 8  # of a single map
PANEL_CELL, PANELS_ACROSS = 46, 4  # where there are several maps
MARGIN, TITLE, LEGEND, LEGEND_COLORS = 16, 22, 40, 100
NUMBERS_FROM, TRIANGLES_FROM = 40, 64  # sizes of cells that have room for a number, and for four
ROWS, MOST_STATES, ROW_HEIGHT, COLUMN_WIDTH = 40, 200, 18, 56  # of a table without a map

DIRECTIONS = {LEFT: (-1, 0), DOWN: (0, 1), RIGHT: (1, 0), UP: (0, -1)}
CORNERS = {LEFT: ((0, 1), (0, 0)), UP: ((0, 0), (1, 0)), RIGHT: ((1, 0), (1, 1)), DOWN: ((1, 1), (0, 1))}
TRAP_COLOR: Color = (64, 64, 70)
GOAL_COLOR: Color = (213, 94, 0)
PASSENGER_COLOR: Color = (86, 180, 233)


def table_pictures(q: Array, maps: list[GridMap]) -> dict[str, bytes]:
    """Return pictures of action values [S, A], -inf for actions that a state does not have, by name."""
    if not maps:
        return {"q_values": rows_of_numbers(q)}
    pictures = {"policy": on_maps(q.max(axis=1), q.argmax(axis=1), maps)}
    if len(maps) == 1:
        pictures["q_values"] = on_maps(q, None, maps)
    return pictures


def value_pictures(v: Array, policy: Array, maps: list[GridMap]) -> dict[str, bytes]:
    """Return a picture of state values [S], with arrows if the policy [S, A] leaves nothing to chance, by name."""
    if not maps:
        return {"values": rows_of_numbers(v[:, None])}
    chosen = policy.argmax(axis=1) if (policy.max(axis=1) == 1).all() else None
    return {"values": on_maps(v, chosen, maps)}


# --- Maps -----------------------------------------------------------------------------------------------


def on_maps(values: Array, chosen: Array | None, maps: list[GridMap]) -> bytes:
    """Draw the maps in the colours of values: [S], or [S, A] for a triangle each; an arrow for chosen: [S]."""
    rows, columns = maps[0].shape
    alone = len(maps) == 1
    cell = max(CELL_SMALLEST, min(CELL_LARGEST, MAP_SIZE // max(rows, columns))) if alone else PANEL_CELL
    across = min(len(maps), PANELS_ACROSS)
    title = 0 if alone else TITLE
    width, height = columns * cell + MARGIN, rows * cell + MARGIN + title
    painter = Painter(across * width + MARGIN, -(-len(maps) // across) * height + MARGIN + LEGEND)
    colors = Colors.of(values[[state for grid in maps for state in states_shown(grid)]])
    for i, grid in enumerate(maps):
        left, top = MARGIN + i % across * width, MARGIN + i // across * height
        painter.text((left + columns * cell / 2, top + title / 2), grid.title, INK, 15)
        draw_map(painter, grid, (left, top + title), cell, values, chosen, colors)
    draw_legend(painter, colors)
    return painter.png()


def states_shown(grid: GridMap) -> list[int]:
    """Return the states whose values can be seen on the map."""
    rows, columns = grid.shape
    return [grid.states[r][c] for r in range(rows) for c in range(columns) if not is_end(grid, r, c)]


def is_end(grid: GridMap, row: int, column: int) -> bool:
    """Say whether nothing is left to do in a cell. Taxi's passenger must be put down at the goal."""
    return grid.cells[row][column] in (TRAP, GOAL) and set(grid.actions) == set(DIRECTIONS)


def draw_map(
    painter: Painter, grid: GridMap, corner: Point, cell: int, values: Array, chosen: Array | None, colors: Colors
) -> None:
    rows, columns = grid.shape
    for row in range(rows):
        for column in range(columns):
            at = (corner[0] + column * cell, corner[1] + row * cell)
            state = grid.states[row][column]
            if is_end(grid, row, column):
                color = TRAP_COLOR if grid.cells[row][column] == TRAP else GOAL_COLOR
                painter.rectangle(at, (cell, cell), color)
            elif values.ndim == 2:
                draw_triangles(painter, grid.actions, at, cell, values[state], colors)
            else:
                action = None if chosen is None else grid.actions[chosen[state]]
                draw_cell(painter, at, cell, float(values[state]), action, colors)
            draw_marks(painter, grid, row, column, at, cell)
    for row, column in grid.walls:
        x, y = corner[0] + (column + 1) * cell, corner[1] + row * cell
        painter.line((x, y), (x, y + cell), INK, 4)


def draw_cell(painter: Painter, at: Point, cell: int, value: float, action: str | None, colors: Colors) -> None:
    """Draw the value as a colour and, where there is room, as a number, and what is done there."""
    color = colors(value)
    painter.rectangle(at, (cell - 1, cell - 1), color)
    ink = readable_on(color)
    x, y = at[0] + cell / 2, at[1] + cell / 2
    if cell >= NUMBERS_FROM:
        painter.text((x, y + 0.33 * cell), short_number(value), ink, max(11, cell / 6))
        y -= 0.08 * cell
    if action in DIRECTIONS:
        draw_arrow(painter, (x, y), DIRECTIONS[action], 0.5 * cell, ink)
    elif action is not None:
        painter.text((x, y), action, ink, 0.32 * cell, bold=True)


def draw_arrow(painter: Painter, center: Point, direction: tuple[int, int], length: float, color: Color) -> None:
    (x, y), (dx, dy) = center, direction

    def point(along: float, aside: float) -> Point:
        """Return a point in the arrow's own coordinates, in units of its length."""
        return x + length * (along * dx - aside * dy), y + length * (along * dy + aside * dx)

    head = [point(0.5, 0), point(0.05, -0.32), point(0.05, 0.32)]
    shaft = [point(0.1, -0.1), point(0.1, 0.1), point(-0.5, 0.1), point(-0.5, -0.1)]
    painter.polygon(head, color)
    painter.polygon(shaft, color)


def draw_triangles(
    painter: Painter, actions: tuple[str, ...], at: Point, cell: int, values: Array, colors: Colors
) -> None:
    """Draw the value of each direction in the triangle on that side; the one that is taken in bold."""
    center = at[0] + cell / 2, at[1] + cell / 2
    side = cell - 1
    for index, (action, value) in enumerate(zip(actions, values.tolist(), strict=True)):
        color = colors(value)
        corners = [(at[0] + x * side, at[1] + y * side) for x, y in CORNERS[action]]
        painter.polygon([*corners, center], color)
        if cell >= TRIANGLES_FROM:
            dx, dy = DIRECTIONS[action]
            where = center[0] + 0.28 * dx * cell, center[1] + 0.34 * dy * cell
            taken = index == values.argmax()
            painter.text(where, short_number(value), readable_on(color), cell / 7, bold=taken)
    for a, b in (((0, 0), (1, 1)), ((0, 1), (1, 0))):
        ends = [(at[0] + x * side, at[1] + y * side) for x, y in (a, b)]
        painter.line(ends[0], ends[1], PAPER, 1)


def draw_marks(painter: Painter, grid: GridMap, row: int, column: int, at: Point, cell: int) -> None:
    """Draw what a cell is and how it is called."""
    kind = grid.cells[row][column]
    if kind == GOAL and is_end(grid, row, column):
        painter.text((at[0] + cell / 2, at[1] + cell / 2), "goal", PAPER, cell / 4)
    elif kind in (GOAL, PASSENGER):
        painter.rectangle(at, (cell - 1, cell - 1), None, border=GOAL_COLOR if kind == GOAL else PASSENGER_COLOR)
    label = grid.labels.get((row, column), START if kind == START else "")
    if label:
        painter.rectangle(at, (cell / 4, cell / 4), INK)
        painter.text((at[0] + cell / 8, at[1] + cell / 8), label, PAPER, cell / 5)


def draw_legend(painter: Painter, colors: Colors) -> None:
    """Draw the scale at the bottom, from the lowest value to the highest."""
    left, top, height = MARGIN + 60, painter.height - LEGEND + 6, 14
    width = (painter.width - 2 * left) / LEGEND_COLORS
    for i in range(LEGEND_COLORS):
        value = colors.low + (colors.high - colors.low) * i / (LEGEND_COLORS - 1)
        painter.rectangle((left + i * width, top), (width, height), colors(value))
    for x, value in ((left / 2, colors.low), (painter.width - left / 2, colors.high)):
        painter.text((x, top + height / 2), short_number(value), INK, 14)


# --- Without a map --------------------------------------------------------------------------------------


def rows_of_numbers(table: Array) -> bytes:
    """Draw [S, A] as coloured numbers, a row for each state; no more than MOST_STATES of them."""
    shown, (num_states, num_actions) = table[:MOST_STATES], table.shape
    blocks = -(-len(shown) // ROWS)
    block_width = (num_actions + 1) * COLUMN_WIDTH + MARGIN
    height = (min(len(shown), ROWS) + 1) * ROW_HEIGHT
    painter = Painter(max(360, blocks * block_width + MARGIN), height + 3 * MARGIN + LEGEND)
    colors = Colors.of(shown)
    left_out = f", the first {MOST_STATES} of {num_states}" if num_states > MOST_STATES else ""
    painter.text((painter.width / 2, MARGIN), f"a row for each state{left_out}, a column for each action", INK, 13)
    for state, values in enumerate(shown):
        x, y = MARGIN + state // ROWS * block_width, 2 * MARGIN + (state % ROWS + 0.5) * ROW_HEIGHT
        painter.text((x + COLUMN_WIDTH / 2, y), str(state), INK, 13)
        for action, value in enumerate(values.tolist()):
            draw_number(painter, (x + (action + 1) * COLUMN_WIDTH, y), value, colors, value == values.max())
    draw_legend(painter, colors)
    return painter.png()


def draw_number(painter: Painter, middle_left: Point, value: float, colors: Colors, best: bool) -> None:
    if not np.isfinite(value):  # the state does not have this action
        return
    x, y = middle_left
    color = colors(value)
    painter.rectangle((x, y - ROW_HEIGHT / 2), (COLUMN_WIDTH - 1, ROW_HEIGHT - 1), color)
    painter.text((x + COLUMN_WIDTH / 2, y), short_number(value), readable_on(color), 13, bold=best)
