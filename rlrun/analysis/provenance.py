"""Where numbers come from: what the records of runs say about code, versions, machine, date and command."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SHOWN_PACKAGES = ("torch", "gymnasium", "ale-py")
COMMIT_DIGITS = 12
MOST_NAMED = 4


@dataclass(frozen=True)
class Made:
    """How one run was made; what its record does not say is empty."""

    command: str
    date: str  # of its end, else of its start: 2026-11-23
    machine: str
    versions: str
    commit: str


def made(record: dict[str, Any]) -> Made:
    """Return what a run.json says about its making."""
    facts, machine = record.get("fingerprint") or {}, record.get("machine") or {}
    packages = record.get("packages") or {}
    code = record.get("code") or {}
    python = [f"Python {record['python']}"] if record.get("python") else []
    return Made(
        command=str(record.get("command") or ""),
        date=str(record.get("ended") or record.get("started") or "")[:10],
        machine=_machine(facts, machine),
        versions=", ".join([*python, *(f"{name} {packages[name]}" for name in SHOWN_PACKAGES if name in packages)]),
        commit=_commit(code),
    )


def about(runs: Iterable[Made]) -> dict[str, str]:
    """Return {"ended", "machine", "versions", "rlrun"} of all runs; what differs among them is listed."""
    runs = list(runs)
    dates = sorted({run.date for run in runs} - {""})
    return {
        "ended": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "not recorded",
        "machine": named(run.machine for run in runs),
        "versions": named(run.versions for run in runs),
        "rlrun": named(run.commit for run in runs),
    }


def commands(runs: Iterable[Made]) -> list[str]:
    """Return the commands that the runs were started by, without their seeds' numbers, each once."""
    return sorted({re.sub(r"\bseed=\d+", "seed=…", run.command) for run in runs} - {""})


def named(values: Iterable[str]) -> str:
    """Return the different values, joined; "not recorded" where there are none."""
    different = sorted(set(values) - {""})
    more = f"; and {len(different) - MOST_NAMED} more" if len(different) > MOST_NAMED else ""
    return "; ".join(different[:MOST_NAMED]) + more if different else "not recorded"


def _machine(facts: dict[str, Any], machine: dict[str, Any]) -> str:
    """Return "AMD EPYC, 2 cores, cpu, 1 thread", or the GPU's name in place of "cpu"."""
    threads = facts.get("threads")
    parts = [
        facts.get("processor"),
        f"{machine['cores']} cores" if machine.get("cores") else None,
        facts.get("gpu") or facts.get("device"),
        f"{threads} thread{'s' if threads != 1 else ''}" if threads else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def _commit(code: dict[str, Any]) -> str:
    if commit := code.get("commit"):
        return f"commit {commit[:COMMIT_DIGITS]}" + (" with uncommitted changes" if code.get("dirty_diff") else "")
    return f"code {code['sha256'][:COMMIT_DIGITS]}" if code.get("sha256") else ""
