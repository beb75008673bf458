"""`rlrun ls`: the runs below a folder. `rlrun list`: what can be chosen. Neither imports torch."""

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.table import Table

from rlrun.config import option_file, options, target_of
from rlrun.console import table_console
from rlrun.errors import UserError
from rlrun.fields import constant_of
from rlrun.run_folder import RunFolder, find_runs

TAIL_BYTES = 65_536  # enough for the last rows of a JSONL file


def ls(arguments: list[str]) -> int:
    """rlrun ls [outputs]: a table of runs."""
    if len(arguments) > 1:
        raise UserError(f"rlrun ls takes one folder, not {len(arguments)}")
    root = Path(arguments[0] if arguments else "outputs")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; runs are stored under outputs/ of the folder they were started in")
    table = Table("run", "status", box=None, pad_edge=False)
    for name in ("steps", "%", "return", "best", "steps/s"):
        table.add_column(name, justify="right")
    runs = find_runs(root)
    for folder in runs:
        table.add_row(*_row(folder, root))
    table_console().print(table if runs else f"no runs under {root}")
    return 0


def list_options(arguments: list[str]) -> int:
    """rlrun list: algorithms with the action spaces they take, environments, networks, devices."""
    if arguments:
        raise UserError(f"rlrun list takes no arguments, not {arguments[0]}")
    console = table_console()
    console.print(_options_table("algo", "acts in", lambda name, path: _spaces(name)))
    for group in ("env", "network", "protocol", "device", "study", "hydra/launcher"):
        console.print(_options_table(group, "", lambda name, path: ""))
    console.print("hydra/launcher=joblib, ray: several runs at a time, on this machine or a cluster; docs/sweeps.md\n")
    console.print("tuned pairs, applied by themselves: " + ", ".join(o for o in options("tuned") if o != "none"))
    from ale_py import roms

    console.print("\nenv=atari env.game=...: " + ", ".join(sorted(roms.get_all_rom_ids())), highlight=False)
    return 0


def _row(folder: RunFolder, root: Path) -> list[str]:
    record = folder.record()
    metrics = _last_rows(folder.path / "metrics.jsonl")
    step = max([record["steps"], *(row["step"] for row in metrics)])
    result = folder.result()
    best = _best(folder.path / "evaluations.jsonl")
    score = result["mean_return"] if result else _latest(metrics, "rollout/ep_rew_mean")
    speed = _latest(metrics, "time/fps")
    return [
        str(folder.path.relative_to(root)),
        folder.status(),
        f"{step:,}",
        f"{min(100, 100 * step / record['total_steps']):.0f}",
        _number(score),
        _number(best),
        "-" if speed is None else f"{speed:,.0f}",
    ]


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """Return the last whole rows of a JSONL file without reading all of it."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the first one may have been cut
            continue
    return rows


def _latest(rows: list[dict[str, Any]], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if key in row), None)


def _best(path: Path) -> float | None:
    if not path.exists():
        return None
    lines = path.read_bytes().split(b"\n")[:-1]
    return max((json.loads(line)["mean_return"] for line in lines), default=None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _options_table(group: str, detail: str, describe: Any) -> Table:
    plus = "+" if group == "study" else ""
    table = Table(f"[bold]{plus}{group}=", detail, "", box=None, pad_edge=False, show_header=True)
    for name in options(group):
        path = option_file(group, name)
        assert path is not None
        table.add_row(name, describe(name, path), _first_comment(path))
    table.add_row("")
    return table


def _first_comment(path: Path) -> str:
    """Return the comment at the top of a file, without Hydra's package line."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(line.removeprefix("# ") for line in lines if "@package" not in line)


def _spaces(name: str) -> str:
    """Return the action spaces that an algorithm takes, and the observations where it does not take all."""
    target = target_of("algo", name)
    if target is None:
        return ""
    module, _, cls = target.rpartition(".")
    try:
        actions, observations = (constant_of(module, cls, f"{kind}_spaces") for kind in ("action", "obs"))
    except UserError:
        return "(not importable)"
    acts = ", ".join(actions or ())
    return f"{acts}; observes {', '.join(observations)}" if observations else acts
