"""Measure rlrun beside Stable-Baselines3, both at the same settings: the whole table of the CPU in one command.

    pip install "rlrun[bench,mujoco]"
    python scripts/benchmark.py --out speed.json
    python scripts/benchmark.py --work ppo_breakout,dqn_breakout --pairs 5 --seconds 30 --out atari.json

Machines drift by a third over minutes, so the sides take turns (SB3, float32, bf16, SB3, ...), and the ratio is
taken round by round. Each window is a process of its own: rlrun's is the real command, logging to disk as it
does; SB3's is `learn` without a logger. Neither evaluates or writes checkpoints. The time to start and a warm-up
are left out on both sides; of each the most memory that its process held is noted, too. --out names the JSON,
and a Markdown file of the same name comes beside it; both are written anew after each work.
"""

import argparse
import importlib.util
from statistics import median
from typing import Any

from benchmarking import report
from benchmarking.contest import Rules, contest
from benchmarking.processes import Window, end_on_sigterm
from benchmarking.works import BF16, OURS, PEER, WORKS

COLUMNS = ("work", "rlrun", "peer", "ratio, round by round", "median", "goal", "met", "memory of both, GB")
MEANINGS = {OURS: "", BF16: ", bf16"}  # of rlrun's sides, in a row


def main() -> None:
    options = parse_options()
    check_needs(options)
    end_on_sigterm()
    window = Window(options.seconds, options.warm_up)
    rules = Rules(options.pairs, window, options.against_itself, options.sb3_threads, options.quick)
    written = {
        **report.facts(),
        "peer": "rlrun" if options.against_itself else "Stable-Baselines3",
        "seconds": options.seconds,
        "warm_up": options.warm_up,
        "sb3_threads": options.sb3_threads or None,
        "quick": options.quick,
        "work": {},
    }
    for name in options.work:
        written["work"][name] = contest(name, rules)
        if options.out is not None:
            report.write(options.out, written, markdown(written))
    print(markdown(written))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--work", type=report.some_of(list(WORKS)), default=list(WORKS), help=f"some of {','.join(WORKS)}"
    )
    parser.add_argument("--pairs", type=report.positive(int), default=3, help="rounds of each work (default 3)")
    parser.add_argument(
        "--seconds", type=report.positive(float), default=20.0, help="length of a window of training (default 20)"
    )
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds before each window (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round, 2 s, no warm-up: does it all run?")
    parser.add_argument("--out", type=report.out_path, help="the JSON file to write, FILE.json")
    parser.add_argument("--sb3-threads", type=int, default=0, help="torch threads of SB3 (default: as torch chooses)")
    parser.add_argument(
        "--against-itself", action="store_true", help="rlrun in SB3's place: how much of a ratio is chance"
    )
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.seconds, options.warm_up = 1, 2.0, 0.0
    if options.warm_up < 0 or options.sb3_threads < 0:
        parser.error(f"--warm-up={options.warm_up} --sb3-threads={options.sb3_threads}: expected 0 or more")
    options.missing = parser.error
    return options


def check_needs(options: argparse.Namespace) -> None:
    """End with an error where a package is missing, before an hour of measuring."""
    extras = {"stable_baselines3": "bench", "cv2": "bench", "mujoco": "mujoco"}
    needed = set()
    for name in options.work:
        beside = PEER in WORKS[name].sides and not options.against_itself
        needed |= {"stable_baselines3"} if beside else set()
        needed |= {module for module in WORKS[name].needs if beside or extras[module] != "bench"}
    missing = sorted({extras[module] for module in needed if importlib.util.find_spec(module) is None})
    if missing:
        remedy = f'pip install "rlrun[{",".join(missing)}]"'
        options.missing(f"--work={','.join(options.work)} needs packages that are not installed: {remedy}")


# --- The table ------------------------------------------------------------------------------------------


def markdown(written: dict[str, Any]) -> str:
    columns = [written["peer"] if column == "peer" else column for column in COLUMNS]
    rows = [row for result in written["work"].values() for row in rows_of(result)]
    how = f"Windows of {written['seconds']:g} s after {written['warm_up']:g} s of warm-up; median (minimum to maximum)."
    return f"{report.provenance(written)}\n{how}\n\n{report.table(columns, rows)}"


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Return a row for each side of ours."""
    return [_row(result, side) for side in result["sides"] if side != PEER]


def _row(result: dict[str, Any], side: str) -> list[str]:
    numbers, peer = result["sides"][side], result["sides"].get(PEER)
    ratios, goal = result["ratios"].get(side, []), result["goals"].get(side)
    memory = [sample["memory_gb"]["median"] for sample in (numbers, peer) if sample and "memory_gb" in sample]
    return [
        f"{result['title']}{MEANINGS[side]} ({result['unit']})",
        report.spread(numbers["value"]),
        report.spread(peer["value"]) if peer else "-",
        ", ".join(f"{ratio:.2f}" for ratio in ratios) or "-",
        f"{median(ratios):.2f}" if ratios else "-",
        goal["goal"] if goal else "-",
        report.verdict(goal["met"]) if goal else "-",
        ", ".join(f"{gb:.2f}" for gb in memory) or "-",
    ]


if __name__ == "__main__":
    main()
