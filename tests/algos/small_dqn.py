"""DQN and its extensions at a size at which a test takes milliseconds."""

import small_off_policy
from small_off_policy import MakeAgent

from rlrun.algos.dqn import DQN

SMALL = (*small_off_policy.SMALL, "algo.learning_rate=1e-3")
ALGOS = ("dqn", "c51", "qr_dqn", "iqn")


def make_dqn(make_agent: MakeAgent, *overrides: str, algo: str = "dqn", env: str = "cartpole") -> DQN:
    algorithm = make_agent(*SMALL, f"algo={algo}", f"env={env}", *overrides).algorithm
    assert isinstance(algorithm, DQN)
    return algorithm
