"""The one exception that is shown to the user as a message and not as a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. The message names the key, the value, what was expected, and the remedy."""


class RunFailed(Exception):
    """The run itself went wrong (a loss that is not finite, a full disk); a record was kept."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean a, b?" for the known names nearest to `name`, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    matches = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    return f" Did you mean {', '.join(by_lower[m] for m in matches)}?" if matches else ""
