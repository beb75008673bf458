"""The fields that a configuration may set, read from the source of what it builds.

With `ast`, so that a typo or a value of a wrong type is answered before anything heavy is imported.
"""

import ast
import importlib.util
from pathlib import Path
from typing import Any

from rlrun.errors import UserError

NOT_CONFIGURED = ("self", "setup", "obs_space")  # what the program itself passes


def fields_of(module: str, name: str, group: str | None = None) -> dict[str, ast.expr]:
    """Return {field: annotation} of a class: a dataclass's fields, or what __init__ or a function takes."""
    key = f"{group}._target_={module}.{name}" if group else f"{module}.{name}"
    tree = _source(module, key)
    node = next((n for n in tree.body if getattr(n, "name", None) == name), None)
    if isinstance(node, ast.FunctionDef):
        return _parameters(node, tree)
    if not isinstance(node, ast.ClassDef):
        raise UserError(f"{key} names nothing: {module} has no class or function {name}")
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        return _parameters(init, tree)
    fields: dict[str, ast.expr] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            fields |= _base_fields(base.id, module, tree)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
            fields[ast.unparse(item.target)] = _resolve_alias(item.annotation, tree)
    return {k: v for k, v in fields.items() if k not in NOT_CONFIGURED}


def constant_of(module: str, name: str, attribute: str) -> Any:
    """Return the literal that a class, or the nearest of its bases, gives to an annotated attribute; None if none."""
    tree = _source(module, f"{module}.{name}")
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:
        return None
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and ast.unparse(item.target) == attribute and item.value:
            return ast.literal_eval(item.value)
    for base in node.bases:
        origin = _origin(ast.unparse(base), module, tree)
        if origin is not None and (value := constant_of(origin, ast.unparse(base), attribute)) is not None:
            return value
    return None


def _base_fields(base: str, module: str, tree: ast.Module) -> dict[str, ast.expr]:
    origin = _origin(base, module, tree)
    return {} if origin is None else fields_of(origin, base)


def _origin(base: str, module: str, tree: ast.Module) -> str | None:
    """Return the module that a base class is from; None for those that have no fields."""
    if any(isinstance(n, ast.ClassDef) and n.name == base for n in tree.body):
        return module
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == base for a in node.names):
            return None if node.module in ("abc", "typing", "torch", "torch.nn") else node.module
    return None


def _parameters(function: ast.FunctionDef, tree: ast.Module) -> dict[str, ast.expr]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    anything = ast.Name("Any")
    return {a.arg: _resolve_alias(a.annotation or anything, tree) for a in arguments if a.arg not in NOT_CONFIGURED}


def _resolve_alias(annotation: ast.expr, tree: ast.Module) -> ast.expr:
    """Replace a name that the module assigns (Activation = Literal[...]) by what it stands for."""
    if isinstance(annotation, ast.Name):
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == annotation.id for t in node.targets
            ):
                return node.value
    return annotation


def _source(module: str, key: str) -> ast.Module:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise UserError(f"{key} cannot be found: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(f"{key} cannot be found: no module {module} is installed or on PYTHONPATH")
    return ast.parse(Path(spec.origin).read_text())


def coerce(key: str, value: Any, annotation: ast.expr) -> Any:
    for alternative in _alternatives(annotation):
        fits, converted = _convert(value, alternative)
        if fits:
            return converted
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        allowed = ast.literal_eval(annotation.slice)
        raise UserError(f"{key}={_shown(value)} is not known: expected one of {', '.join(map(str, allowed))}")
    expected = ast.unparse(annotation).replace("None", "null")
    raise UserError(f"{key}={_shown(value)} has the wrong type: expected {expected}")


def _alternatives(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp):
        return [*_alternatives(annotation.left), *_alternatives(annotation.right)]
    return [annotation]


def _convert(value: Any, kind: ast.expr) -> tuple[bool, Any]:
    if isinstance(kind, ast.Constant) and kind.value is None:
        return value is None, None
    if isinstance(kind, ast.Subscript):
        return _convert_subscript(value, kind)
    name = ast.unparse(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "bool":
        return isinstance(value, bool), value
    if name == "int":
        whole = number and float(value).is_integer()
        return whole, int(value) if whole else value
    if name == "float":
        return number, float(value) if number else value
    if name == "str":
        # A name such as 2026 arrives as a number.
        return isinstance(value, str) or number, str(value)
    return True, value


def _convert_subscript(value: Any, kind: ast.Subscript) -> tuple[bool, Any]:
    name = ast.unparse(kind.value)
    if name == "Literal":
        allowed = ast.literal_eval(kind.slice)
        return value in (allowed if isinstance(allowed, tuple) else (allowed,)), value
    if name == "list":
        if not isinstance(value, list):
            return False, value
        items = [_convert(item, kind.slice) for item in value]
        return all(fits for fits, _ in items), [converted for _, converted in items]
    if name == "dict":
        return isinstance(value, dict), value
    return True, value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
