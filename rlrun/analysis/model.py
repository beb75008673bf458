"""What a comparison says, as plain records: the tables, the figures and the page are all drawn from these."""

from dataclasses import dataclass, field

from rlrun.analysis.curves import Curve
from rlrun.analysis.groups import Group, natural
from rlrun.analysis.normalize import Scale
from rlrun.analysis.statistics import Array


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval (NaN where one run a task leaves it unknown)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """What is said of one group, in one environment or overall."""

    label: str
    num_runs: int
    num_finished: int
    num_scored: int  # finished, and with a number to judge them by
    others: dict[str, int]  # {status: runs} of those that are not finished
    estimates: dict[str, Estimate]  # mean, median, iqm: the metric per environment; optimality_gap: normalised
    steps: tuple[int, int] | None = None  # the fewest and the most that a scored run of an environment took
    steps_to_threshold: Estimate | None = None  # median over scored runs; infinity: most never got there
    num_reached: int | None = None
    num_evaluated: int | None = None  # scored runs that have a curve to look at
    wall_seconds: float | None = None  # median over scored runs


@dataclass(frozen=True)
class Pair:
    """How probably a run of `better`, the group of higher IQM, beats one of `than`."""

    better: str
    than: str
    probability: Estimate


@dataclass(frozen=True)
class Profile:
    """The fraction of runs above each tau of the comparison, with its band: [T] each."""

    fraction: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Environment:
    """All that is said of one environment."""

    name: str
    scale: Scale
    threshold: float | None  # the value to reach
    mixed: list[str]  # keys of the protocol in which the compared runs differ
    groups: list[Group]
    rows: list[Row]
    pairs: list[Pair]
    over_steps: dict[str, Curve]
    over_clock: dict[str, Curve]


@dataclass(frozen=True)
class Overall:
    """What is said of all environments that every group has scores in, normalised."""

    tasks: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    taus: Array = field(default_factory=lambda: Array(0))
    profiles: dict[str, Profile] = field(default_factory=dict)
    over_steps: dict[str, Curve] = field(default_factory=dict)
    over_clock: dict[str, Curve] = field(default_factory=dict)
    x_steps: str = "environment steps"  # what the axes of the curves are
    x_clock: str = "seconds"


@dataclass(frozen=True)
class Comparison:
    """All that is said."""

    by: str
    metric: str
    verdicts: dict[str, str]  # {"overall" or environment: which is better, and how sure, in a sentence}
    notices: list[str]
    environments: list[Environment]
    overall: Overall

    @property
    def labels(self) -> list[str]:
        """All groups, in the order that gives each its colour."""
        return sorted({group.label for env in self.environments for group in env.groups}, key=natural)

    @property
    def mixed(self) -> bool:
        """Say whether runs of different protocols are compared, as mix=true allows."""
        return bool(self.overall.mixed) or any(env.mixed for env in self.environments)
