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

        write = rlrun.checkpoint.write_together

        def killing_write(contents: dict[Any, bytes]) -> None:
            path, content = next(iter(contents.items()))
            if path.name.startswith("step-") and is_the_time():
                rlrun.checkpoint.beside(path).write_bytes(content[: len(content) // 2])
                die()
            write(contents)

        rlrun.checkpoint.write_together = killing_write
    elif place == "before the manifest":
        replace = os.replace

        def killing_replace(source: Any, target: Any) -> None:
            if target.name.startswith("step-") and target.suffix == ".json" and is_the_time():
                die()
            replace(source, target)

        os.replace = killing_replace  # type: ignore[assignment]
    elif place == "removing the replay":
        import rlrun.launch

        rlrun.launch._remove_replay = lambda folder: die()  # type: ignore[assignment, return-value]
    else:
        raise ValueError(place)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    from rlrun.cli import main

    main()
