"""The command `fusedtricks schedule`: schedules as a table, a chart, a picture or JSON."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from fusedtricks.report.schedule_text import Curve, format_curves, list_schedules

__all__ = ["add_schedule_command", "run_schedule"]

_EXAMPLES = """\
example:
  fusedtricks schedule "Cosine(100)"
  fusedtricks schedule "LinearWarmup(5) * Step(30, 0.1)" --steps 90 --lr 0.4
  fusedtricks schedule "Cosine('90ep').with_warmup('5ep', 'inside')" --steps-per-epoch 100
  fusedtricks schedule "Cosine(100)" "OneCycle(100)" --plot compare.png
  fusedtricks schedule "Cosine(100)" --json | python -m json.tool
  fusedtricks schedule --list

An expression is what one writes in Python: calls of the schedules that --list names, a * b,
a.then(b), a.with_warmup(b), a.between(low, high). Times are numbers of updates, or '5ep' (epochs),
'500ba' (updates), '0.1dur' (share of all steps). Nothing else in it is evaluated.
"""
_DEFAULT_STEPS = 100
_LARGEST_STEPS = 10_000_000
# What an expression can raise: also 1 / 0, a power that is too large, brackets that are too deep.
_EXPRESSION_ERRORS = (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError)


def add_schedule_command(commands: Any) -> None:
    """Add the command `schedule` to the subparsers of `fusedtricks`."""
    parser = commands.add_parser(
        "schedule",
        help="print, draw or list learning-rate schedules",
        description="Print what one or several learning-rate schedules do.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    parser.add_argument(
        "expressions", nargs="*", metavar="EXPRESSION", help="a schedule; several are compared"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=int, help="updates to show (the schedule's own length, or 100)"
    )
    length.add_argument("--epochs", type=float, help="epochs to show; needs --steps-per-epoch")
    parser.add_argument("--steps-per-epoch", type=float, help="updates in an epoch, for '5ep'")
    parser.add_argument("--lr", type=float, default=1.0, help="the optimizer's own value (1)")
    parser.add_argument(
        "--unit",
        choices=("update", "epoch"),
        default="update",
        help="what plain numbers count (update)",
    )
    parser.add_argument("--rows", type=int, default=11, help="rows of the table (11)")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="also draw a picture; needs the extra fusedtricks[demo]"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON with all values")
    output.add_argument(
        "--list", action="store_true", help="list all schedules, arguments, formulas"
    )


def run_schedule(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        Exit code: 0 for success, 1 if the picture cannot be made.

    Raises:
        SystemExit: With code 2 for a bad expression or argument; nothing has been printed then.
    """
    from fusedtricks._extras import MissingExtraError

    _check(arguments)
    if arguments.list:
        print(list_schedules())
        return 0
    curves = _evaluate(arguments)
    if arguments.plot is not None:
        try:
            _plot(curves, arguments)
        except (MissingExtraError, OSError) as error:
            print(f"fusedtricks schedule: error: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        print(_to_json(curves, arguments))
    else:
        print(format_curves(curves, arguments.rows, arguments.steps_per_epoch))
        if arguments.plot is not None:
            print(f"\n{arguments.plot}")
    return 0


# Arguments. ---------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> None:
    """Exit if an argument is wrong for any expression."""
    error = arguments.parser.error
    if arguments.list:
        if arguments.expressions:
            error("argument EXPRESSION: not allowed with argument --list")
        return
    if not arguments.expressions:
        error('argument EXPRESSION: expected at least one, such as "Cosine(100)"; try --list')
    for name in ("epochs", "steps_per_epoch"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            error(f"{_option(name)}: expected a finite number above 0, got {value:g}")
    if not 0 <= arguments.lr < math.inf:
        error(f"argument --lr: expected a finite number, at least 0, got {arguments.lr:g}")
    if arguments.rows < 1:
        error(f"argument --rows: expected at least 1, got {arguments.rows}")
    for name, is_given in (("epochs", arguments.epochs), ("unit", arguments.unit == "epoch")):
        if is_given and arguments.steps_per_epoch is None:
            error(f"{_option(name)}: counts epochs; give --steps-per-epoch, the updates in one")
    if arguments.plot is not None and not Path(arguments.plot).suffix:
        error(f"argument --plot: expected a file name such as {arguments.plot or 'lr'}.png")


def _option(name: str) -> str:
    return f"argument --{name.replace('_', '-')}"


# Values. ------------------------------------------------------------------------------------------


def _evaluate(arguments: argparse.Namespace) -> list[Curve]:
    """Return the expressions with their values, or exit if one is wrong."""
    from fusedtricks.lr_scheduler import parse

    curves = []
    for expression in arguments.expressions:
        try:
            curves.append(Curve(expression, parse(expression)))
        except _EXPRESSION_ERRORS as error:
            arguments.parser.error(f"argument EXPRESSION: {_reason(error)}")
    units = {"steps_per_epoch": arguments.steps_per_epoch, "unit": arguments.unit}
    n_steps = _n_steps(curves, units, arguments)
    for curve in curves:
        try:
            curve.schedule = curve.schedule.resolve(**units, total_steps=n_steps)
            curve.values = curve.schedule.preview(n_steps, arguments.lr)
        except _EXPRESSION_ERRORS as error:
            _refuse(curve, error, arguments)
        if not all(map(math.isfinite, curve.values)):
            _refuse(curve, ValueError("its values are too large"), arguments)
    return curves


def _n_steps(curves: list[Curve], units: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Return how many updates to show."""
    name, n_steps = "steps", arguments.steps
    if arguments.epochs is not None:
        name, n_steps = "epochs", arguments.epochs * arguments.steps_per_epoch + 0.5
    if n_steps is None:
        lengths = [_length(curve, units, arguments) for curve in curves]
        n_steps = math.ceil(max(filter(None, lengths), default=_DEFAULT_STEPS))
    if not 1 <= n_steps < _LARGEST_STEPS + 1:
        arguments.parser.error(
            f"{_option(name)}: expected 1 to {_LARGEST_STEPS} updates, got {n_steps:.8g}"
        )
    return math.floor(n_steps)


def _length(curve: Curve, units: dict[str, Any], arguments: argparse.Namespace) -> float | None:
    try:
        return curve.schedule.resolve(**units).length
    except _EXPRESSION_ERRORS:
        pass
    try:
        # A share of the run leaves the length of the run open.
        curve.schedule.resolve(**units, total_steps=_DEFAULT_STEPS)
        return _DEFAULT_STEPS
    except _EXPRESSION_ERRORS as error:
        return _refuse(curve, error, arguments)


def _refuse(curve: Curve, error: Exception, arguments: argparse.Namespace) -> Any:
    reason = f"{curve.expression}: {_reason(error)}"
    if arguments.steps_per_epoch is None and "needs steps_per_epoch" in reason:
        reason += "; give --steps-per-epoch"
    arguments.parser.error(f"argument EXPRESSION: {reason}")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


# Output. ------------------------------------------------------------------------------------------


def _plot(curves: list[Curve], arguments: argparse.Namespace) -> None:
    from fusedtricks.report.schedules import draw_schedules

    try:
        draw_schedules({curve.expression: curve.values for curve in curves}, arguments.plot)
    except ValueError as error:  # a kind of file that matplotlib does not know
        arguments.parser.error(f"argument --plot: {error}")


def _to_json(curves: list[Curve], arguments: argparse.Namespace) -> str:
    return json.dumps(
        {
            "steps": len(curves[0].values),
            "steps_per_epoch": arguments.steps_per_epoch,
            "lr": arguments.lr,
            "schedules": [
                {
                    "expression": curve.expression,
                    "resolved": repr(curve.schedule),
                    "length": curve.schedule.length,
                    "values": curve.values,
                }
                for curve in curves
            ],
        }
    )
