"""As much of Slurm's commands as submitit uses, on this machine: fake_slurm.py COMMAND ARGUMENTS.

Jobs are processes. Their numbers, and what is asked of them, are files in the folder FAKE_SLURM.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "."))


def install(folder: Path) -> None:
    """Put the commands into a folder, for PATH."""
    for name in ("sbatch", "srun", "scontrol", "scancel", "sacct"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {name} "$@"\n')
        command.chmod(0o755)


def sbatch(script: str) -> None:
    """Start each job of the script's array, and say their common number."""
    text = Path(script).read_text()
    (STATE / "script").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for task in range(int(array[1]) + 1) if array else [None]:
        subprocess.Popen(
            [sys.executable, __file__, "node", script, "" if task is None else str(task)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    print("Submitted batch job 77")


def node(script: str, task: str) -> None:
    """Run a job, and again as often as it was requeued."""
    number = f"77_{task}" if task else "77"
    tasks = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": task} if task else {}
    ranks = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
    environment = {**os.environ, **tasks, **ranks, "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": number}
    while True:
        subprocess.run(["bash", script], env=environment, check=False)
        requeued = STATE / f"requeue.{number}"
        if not requeued.exists():
            return
        requeued.rename(STATE / f"requeued.{number}.{time.time()}")


def srun(*arguments: str) -> None:
    """Become the job's process, whose number Slurm's signals go to."""
    command = arguments[next(i for i, a in enumerate(arguments) if "python" in a and not a.startswith("--")) :]
    (STATE / f"process.{os.environ['SLURM_JOB_ID']}").write_text(str(os.getpid()))
    os.execv(command[0], command)


def scontrol(verb: str, number: str) -> None:
    assert verb == "requeue"
    (STATE / f"requeue.{number}").touch()


def scancel(number: str, *arguments: str) -> None:
    """Send SIGTERM, or the signal after --signal."""
    name = arguments[1] if arguments else "TERM"
    process = STATE / f"process.{number}"
    if process.exists():
        os.kill(int(process.read_text()), getattr(signal, f"SIG{name.removeprefix('SIG')}"))


def sacct(*arguments: str) -> None:
    """Know nothing: submitit then goes by the files that jobs leave."""
    print("JobID|State|NodeList")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
