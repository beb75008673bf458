"""Measure rlrun on a GPU: speeds, replays on the device, and two whole trainings, in one command.

    pip install "rlrun[mujoco]"
    python scripts/gpu.py --out gpu.json
    python scripts/gpu.py --table train_ppo,train_pqn --total-steps 10000000 --out trainings.json
    python scripts/gpu.py --device cpu --quick      does it all run? its numbers mean nothing

    environment  Breakout alone, random actions     replay      DQN and Rainbow, replay on host and device
    ppo          8 x 128 and more environments      continuous  SAC and TD3 on HalfCheetah
    pqn          128 x 32                           train_ppo, train_pqn  10 million steps of Breakout

Each row is the real command in a process of its own, which is ended when it takes too long; one that fails is reported
and the next ones are measured. --out names the JSON, and a Markdown file of the same name comes beside it; both are
written anew after each row.
"""

import argparse
import subprocess
import sys
from typing import Any

from benchmarking import report
from benchmarking.gpu_rows import PUBLISHED_STEPS, TABLES, GpuRow, How
from benchmarking.processes import Failed, Window, end_on_sigterm
from benchmarking.tables import Row, ScaleTable

CPU = "the CPU"
LAST = ("goal", "met", "failed")  # columns
QUICK_STEPS = 512
LONGEST_ERROR = 200  # characters of it in a table; the JSON has all
NOTE = "Steady steps per second of windows of {seconds:g} s after {warm_up:g} s of warm-up."
TRAINING_NOTE = "From a random policy. Mean: of 100 episodes of the last policy, played after the training."


def main() -> None:
    options = parse_options()
    end_on_sigterm()
    how = How(
        options.device, Window(options.seconds, options.warm_up), options.quick, options.total_steps, options.extra
    )
    written = {
        **report.facts(),
        "device": options.device_name,
        **{key: getattr(options, key) for key in ("seconds", "warm_up", "total_steps", "quick", "extra")},
        "tables": {},
    }
    tables: list[ScaleTable] = []
    for name in options.table:
        title, rows = TABLES[name]
        note = TRAINING_NOTE if name.startswith("train_") else NOTE.format(**written)
        tables.append(ScaleTable(title, note))
        for row in rows:
            tables[-1].add(measured(row, how))
            written["tables"][name] = tables[-1].as_json()
            if options.out is not None:
                report.write(options.out, written, markdown(written, tables))
    print(markdown(written, tables))
    if any(row["failed"] for table in tables for row in table.rows):
        sys.exit(1)


def measured(row: GpuRow, how: How) -> Row:
    """Return a row of a table, of what was measured or of what went wrong."""
    goal = row.goal(how) or None
    try:
        return {"work": row.name, **row.measure(how), "goal": goal, "failed": None}
    except (
        Failed,
        OSError,
        ValueError,
        LookupError,
    ) as failed:  # the latter where a run left no result, or half of one
        message = failed.message if isinstance(failed, Failed) else f"{type(failed).__name__}: {failed}"
        return {"work": row.name, "met": None, "goal": goal, "failed": message}


def markdown(written: dict[str, Any], tables: list[ScaleTable]) -> str:
    unjudged = written["quick"] or written["device"] == CPU
    warnings = ["**Quick: these numbers mean nothing.**"] if written["quick"] else []
    warnings += ["Goals are for a GPU and are not judged here."] if unjudged else []
    return "\n\n".join([report.provenance(written), *warnings, *(shown(table).markdown() for table in tables)])


def shown(table: ScaleTable) -> ScaleTable:
    """Return the table as it is printed: every row with all columns, errors cut short."""
    columns = dict.fromkeys(column for row in table.rows for column in row if column not in LAST)
    rows = [{column: row.get(column) for column in (*columns, *LAST)} for row in table.rows]
    for row in rows:
        row["failed"] = short(row["failed"])
    return ScaleTable(table.title, table.note, rows=rows)


def short(error: str | None) -> str | None:
    """Return the last line of an error as a table can hold it."""
    return error and error.strip().splitlines()[-1].replace("|", "/")[:LONGEST_ERROR]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = list(TABLES)
    parser.add_argument("--table", type=report.some_of(names), default=names, help=f"some of {','.join(names)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where all of it runs (default cuda)")
    parser.add_argument(
        "--seconds", type=report.positive(float), default=30.0, help="length of a window of training (default 30)"
    )
    parser.add_argument("--warm-up", type=report.positive(float), default=20.0, help="seconds before it (default 20)")
    parser.add_argument(
        "--total-steps", type=report.positive(int), default=PUBLISHED_STEPS, help="of train_ppo and train_pqn"
    )
    parser.add_argument("--extra", nargs="+", default=[], metavar="KEY=VALUE", help="given to every training as well")
    parser.add_argument("--quick", action="store_true", help="tiny networks, 1.5 s, few steps: does it all run?")
    parser.add_argument("--out", type=report.out_path, help="the JSON file to write, FILE.json")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.warm_up, options.total_steps = 1.5, 0.0, QUICK_STEPS
    options.device_name = CPU if options.device == "cpu" else gpu_name()
    if options.device_name is None:
        parser.error("--device=cuda: torch finds no CUDA device here; --device=cpu --quick shows whether it all runs")
    return options


def gpu_name() -> str | None:
    """Return the GPU's name, None without one; asked for in another process, lest this one takes some of its memory."""
    code = "import torch; print(torch.cuda.get_device_name())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    main()
