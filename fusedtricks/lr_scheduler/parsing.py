"""Schedules from text: the calls that one would write in Python, and nothing else."""

import ast
from typing import Any

from fusedtricks.lr_scheduler import composition, cycles, decays, warmups
from fusedtricks.lr_scheduler.schedule import Schedule

__all__ = ["KINDS", "parse"]

# Without Function: a text cannot hold one.
KINDS: dict[str, Any] = {
    name: getattr(module, name)
    for module in (decays, warmups, cycles, composition)
    for name in module.__all__
    if name[0].isupper() and name != "RestartingSchedule"
}
_METHODS = ("between", "then", "with_warmup")


def register(kind: type[Schedule]) -> type[Schedule]:
    """Make a class of schedules known to `parse`; for use as a decorator."""
    KINDS[kind.__name__] = kind
    return kind


def parse(text: str) -> Schedule:
    """Return the schedule that a text describes.

    The text is the Python expression that makes the schedule: calls of the schedules by name, their
    methods `then`, `with_warmup` and `between`, `*`, numbers, strings, lists. Nothing else is
    evaluated, so that a text from anywhere is safe. `parse(repr(schedule)) == schedule`.

    Args:
        text: For example "Cosine('90ep').with_warmup('5ep', 'inside')".

    Raises:
        ValueError: If the text is no such expression, or an argument is wrong.

    Example:
        >>> parse("LinearWarmup(5) * Step(30, 0.1)").preview(3)
        [0.0, 0.2, 0.4]
    """
    if not isinstance(text, str):
        raise ValueError(f"schedule: expected a text such as 'Cosine(100)', got {text!r}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"schedule {text!r} is no expression: {error}") from error
    try:
        result = _evaluate(tree)
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"schedule {text!r}: {error}") from error
    if not isinstance(result, Schedule):
        raise ValueError(f"schedule {text!r} is {result!r}; write a call such as Cosine(100)")
    return result


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return tuple(_evaluate(item) for item in items)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_checked(operand, (int, float))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _checked(left, (int, float, Schedule)) * _checked(right, (int, float, Schedule))
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _checked(left, (int, float)) / _checked(right, (int, float))
        case ast.Call(func=function, args=args, keywords=keywords):
            if all(word.arg for word in keywords):
                named = {word.arg: _evaluate(word.value) for word in keywords}
                return _callable(function)(*(_evaluate(arg) for arg in args), **named)
    raise ValueError(
        f"schedule: expected calls of {', '.join(sorted(KINDS))}, their methods "
        f"{', '.join(_METHODS)}, numbers and times, got {ast.unparse(node)!r}"
    )


def _checked(node: ast.expr, types: tuple[type, ...]) -> Any:
    """Return the value of an operand: no text or list, which `*` would repeat."""
    value = _evaluate(node)
    if not isinstance(value, types):
        raise ValueError(f"schedule: expected a number or a schedule, got {ast.unparse(node)!r}")
    return value


def _callable(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in KINDS:
            return KINDS[name]
        case ast.Attribute(value=value, attr=name) if name in _METHODS:
            schedule = _evaluate(value)
            if isinstance(schedule, Schedule):
                return getattr(schedule, name)
    raise ValueError(
        f"schedule: unknown {ast.unparse(node)!r}; there are {', '.join(sorted(KINDS))} and "
        f"the methods {', '.join(_METHODS)}"
    )
