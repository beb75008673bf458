"""Jobs that stand in for runs where a launcher itself is tested: what it does with processes, not what they learn."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StubJob:
    """Does what the point says, and returns a number of its process."""

    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, point: str) -> int:
        if point == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if point == "raise":
            raise OSError("no such machine")
        if point == "cores":
            return int(self.environment["RLRUN_CORES"])
        if point == "hears Ctrl-C":
            return signal.getsignal(signal.SIGINT) != signal.SIG_IGN
        return os.getpid()
