"""Run the command line, and SIGKILL it in the middle of something: kill_inside.py PLACE OCCASION ARGUMENTS."""

import os
import signal
import sys
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place: str, occasion: int) -> None:
    """Make the process kill itself at the `occasion`-th time that it is in `place`."""
    count = 0

    def is_the_time() -> bool:
        nonlocal count
        count += 1
        return count == occasion

    if place == "evaluation":
        from rlrun.evaluation import Evaluator

        act = Evaluator._act

        def killing_act(self: Any, *arguments: Any) -> Any:
            if is_the_time():
                die()
            return act(self, *arguments)

        Evaluator._act = killing_act  # type: ignore[method-assign]
    elif place == "half a checkpoint":
        import rlrun.checkpoint

        write = rlrun.checkpoint.write_atomically

        def killing_write(path: Any, content: bytes) -> None:
            if path.name.startswith("step-") and is_the_time():
                path.with_name(path.name + ".tmp").write_bytes(content[: len(content) // 2])
                die()
            write(path, content)

        rlrun.checkpoint.write_atomically = killing_write
    elif place == "before the manifest":
        import rlrun.checkpoint

        write_json = rlrun.checkpoint.write_json

        def killing_write_json(path: Any, value: Any) -> None:
            if path.name.startswith("step-") and is_the_time():
                die()
            write_json(path, value)

        rlrun.checkpoint.write_json = killing_write_json
    else:
        raise ValueError(place)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    from rlrun.cli import main

    main()
