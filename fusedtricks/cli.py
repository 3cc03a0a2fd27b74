"""The command `fusedtricks`."""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fusedtricks import __version__, backends
from fusedtricks.cli_schedule import add_schedule_command, run_schedule

__all__ = ["main"]

INTERRUPTED = 130  # What shells give to a command that Ctrl-C ended.

_DEMO_EXAMPLE = """\
example:
  fusedtricks demo --epochs 6 --name short
  fusedtricks demo --name short --resume      after Ctrl-C

Leaves result.json and curves.png in the folder runs/short. The last line printed is the path of
result.json. Needs the extra: pip install 'fusedtricks[demo]'
"""
_INFO_EXAMPLE = """\
example:
  fusedtricks info --json | python -m json.tool
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name. Default: those of the process.

    Returns:
        Exit code: 0 for success, 1 for an error of the environment, 130 for an interrupted demo.

    Raises:
        SystemExit: With code 2 for bad arguments, 0 after --help and --version.
    """
    parser = _make_parser()
    arguments = parser.parse_args(argv)
    if arguments.command != "demo":
        return _print_to_the_end(_info if arguments.command == "info" else run_schedule, arguments)
    try:
        return _demo(arguments)
    except KeyboardInterrupt:
        command = _resume_command(arguments)
        print(f"interrupted; continue from the last checkpoint with: {command}", file=sys.stderr)
        return INTERRUPTED


def _print_to_the_end(
    command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace
) -> int:
    try:
        code = command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # What reads the output, such as `head`, has enough; Python is not to complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusedtricks",
        description="Fused multi-tensor optimizers for PyTorch.",
        epilog="example:\n  fusedtricks info\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fusedtricks {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{demo,info,schedule}")
    _add_demo(commands)
    info = commands.add_parser(
        "info",
        help="say which backends work here, and why the others do not",
        description="Say which backends work on this machine, and why the others do not.",
        epilog=_INFO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("--json", action="store_true", help="print JSON")
    add_schedule_command(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a small network with fusedtricks and with torch, and compare",
        description=(
            "Train a small ResNet on handwritten digits four times: with clean and with 40 %\n"
            "wrong training labels, with fusedtricks' AdamW and with torch's parts. Takes 1 to 3\n"
            "minutes."
        ),
        epilog=_DEMO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Left out means absent: --resume must tell a given option from a default.
        argument_default=argparse.SUPPRESS,
    )
    demo.set_defaults(parser=demo)
    demo.add_argument("--epochs", type=int, help="passes over the training images (12)")
    demo.add_argument("--batch-size", type=int, help="images per batch (64)")
    demo.add_argument("--lr", type=float, help="largest learning rate (0.002)")
    demo.add_argument("--weight-decay", type=float, help="decay per unit of lr (0.05)")
    demo.add_argument("--seed", type=int, help="seed of everything random (0)")
    demo.add_argument("--threads", type=int, help="threads of torch (its own choice)")
    demo.add_argument("--train-size", type=int, help="training images to use (1438, all)")
    demo.add_argument("--name", default="demo", help="folder of the run inside --out (demo)")
    demo.add_argument("--out", default="runs", help="folder of all runs (runs)")
    demo.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="continue an interrupted run with its settings, to the same weights",
    )
    demo.add_argument("--quiet", action="store_true", default=False, help="print only the results")


def _info(arguments: argparse.Namespace) -> int:
    info = backends.info()
    print(json.dumps(info, indent=2) if arguments.json else backends.format_info(info))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    # Only here, so that `fusedtricks info` stays quick and needs no extra.
    from fusedtricks._extras import MissingExtraError
    from fusedtricks.train.demo import DemoError
    from fusedtricks.train.progress import make_progress
    from fusedtricks.train.signals import StopRequest
    from fusedtricks.train.trainer import DivergedError

    try:
        with StopRequest() as should_stop:
            demo = _prepare(arguments)
            progress = make_progress(quiet=arguments.quiet)
            is_finished = demo.run(should_stop=should_stop, progress=progress)
    except (DemoError, DivergedError, MissingExtraError, OSError) as error:
        print(f"fusedtricks demo: error: {error}", file=sys.stderr)
        return 1
    if not is_finished:
        command = _resume_command(arguments)
        print(f"stopped at {demo.position}; continue with: {command}", file=sys.stderr)
        return INTERRUPTED
    _report(demo)
    return 0


def _prepare(arguments: argparse.Namespace) -> Any:
    """Return the demo to run; nothing is written before all arguments are checked."""
    from fusedtricks.train.demo import Demo
    from fusedtricks.train.settings import Settings

    name = arguments.name
    if name in ("", ".", "..") or Path(name).name != name:
        arguments.parser.error(
            f"argument --name: expected the name of a folder, got {name!r}; use --out for where it "
            "goes"
        )
    given = {key: value for key, value in vars(arguments).items() if key in Settings.names()}
    folder = Path(arguments.out, name)
    try:
        settings = Settings(**{"threads": torch.get_num_threads()} | given)
    except ValueError as error:
        arguments.parser.error(str(error))
    return Demo.resume(folder, given) if arguments.resume else Demo.start(folder, settings)


def _resume_command(arguments: argparse.Namespace) -> str:
    command = [*_program(), "demo", "--name", arguments.name]
    if arguments.out != "runs":
        command += ["--out", arguments.out]
    return shlex.join([*command, "--resume"])


def _program() -> list[str]:
    """Return how to call this program again: `make demo` calls it by its path."""
    if shutil.which("fusedtricks"):
        return ["fusedtricks"]
    if Path(sys.argv[0]).name == "fusedtricks":
        return [os.path.relpath(sys.argv[0])]
    return [Path(sys.executable).name, "-m", "fusedtricks"]


def _report(demo: Any) -> None:
    from fusedtricks._extras import require
    from fusedtricks.report import format_results

    require("rich.console").Console().print(format_results(demo.results))
    print(f"{demo.elapsed_s:.0f} s; learning curves: {demo.curves_path}")
    print(demo.result_path)
