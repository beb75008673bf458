"""What rlrun costs as its work grows, and in company: a small table for each question.

    pip install "rlrun[bench,joblib]"
    python scripts/scale.py --out scale.json
    python scripts/scale.py --table neighbour,parallel --pairs 5 --out company.json

    neighbour  a run alone and beside a busy process           parallel  a sweep with a run on each core
    envs       steps per second over 1 to 256 environments     memory    over 100,000 to 2 million steps
    replay     saving and restoring over the replay's size     sweep     100 short runs
    logs       bytes per million steps

--out names the JSON, and a Markdown file of the same name comes beside it; both are written anew after each table.
"""

import argparse
from typing import Any

from benchmarking import company, growth, overhead, report
from benchmarking.processes import Window, end_on_sigterm
from benchmarking.tables import Maker, ScaleTable, Size

TABLES: dict[str, Maker] = {
    "neighbour": company.neighbour,
    "parallel": company.parallel,
    "envs": growth.envs,
    "replay": overhead.replay,
    "memory": growth.memory,
    "sweep": overhead.sweep,
    "logs": overhead.logs,
}


def main() -> None:
    options = parse_options()
    end_on_sigterm()
    size = Size(options.quick, options.pairs, Window(options.seconds, 0.0 if options.quick else 5.0))
    facts = report.facts()
    tables: dict[str, ScaleTable] = {}
    for name in options.table:
        tables[name] = TABLES[name](size)
        if options.out is not None:
            report.write(options.out, as_json(facts, options, tables), markdown(facts, tables))
    print(markdown(facts, tables))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = list(TABLES)
    parser.add_argument("--table", type=report.some_of(names), default=names, help=f"some of {','.join(names)}")
    parser.add_argument("--pairs", type=report.positive(int), default=3, help="rounds of what takes turns (default 3)")
    parser.add_argument(
        "--seconds", type=report.positive(float), default=30.0, help="length of a window of training (default 30)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, 2 s: does it all run?")
    parser.add_argument("--out", type=report.out_path, help="the JSON file to write, FILE.json")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.seconds = 1, 2.0
    return options


def as_json(facts: dict[str, Any], options: argparse.Namespace, tables: dict[str, ScaleTable]) -> dict[str, Any]:
    measuring = {"seconds": options.seconds, "pairs": options.pairs, "quick": options.quick}
    return {**facts, **measuring, "tables": {name: table.as_json() for name, table in tables.items()}}


def markdown(facts: dict[str, Any], tables: dict[str, ScaleTable]) -> str:
    return "\n\n".join([report.provenance(facts), *(table.markdown() for table in tables.values())])


if __name__ == "__main__":
    main()
