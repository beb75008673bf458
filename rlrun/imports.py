"""Functions of the user's own, which the configuration names as module.function."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from rlrun.errors import UserError, nearest


def imported(key: str, path: str) -> Callable[..., Any]:
    """Return the function that the value `path` of a configuration's key names.

    Its module lies in the folder where the command is given, in that of --config-dir, or is installed. Raises
    UserError if it cannot be imported or holds no such function.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"{key}={path} names no module: expected module.function")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the module does when it is run
        raise UserError(
            f"{key}={path}: {module_name} cannot be imported ({type(error).__name__}: {error}); expected "
            "module.function, with the module in this folder, in that of --config-dir, or installed"
        ) from error
    found = getattr(module, name, None)
    if callable(found):
        return found
    functions = [n for n, value in vars(module).items() if callable(value)]
    what = "no function" if found is None else f"a {type(found).__name__}, not a function,"
    raise UserError(f"{key}={path}: {module_name} has {what} {name}.{nearest(name, functions)}")
