"""The `lavit` command: finds the subcommand, runs it, turns mistakes into one line and status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lavit_jax import allocator
from lavit_jax.cli import (
    answer,
    caption,
    checkpoints,
    convert,
    data,
    draw,
    parity,
    plan,
    quickstart,
    reconstruct,
    replay,
    score,
    tokenize,
    tokenize_dataset,
    train,
)
from lavit_jax.cli.common import Command
from lavit_jax.errors import UserError, memory_told

# Modules of one command each, in the order of `lavit --help`; none imports jax before it runs.
COMMANDS: tuple[Command, ...] = (
    quickstart,
    train,
    checkpoints,
    replay,
    tokenize,
    reconstruct,
    caption,
    answer,
    score,
    draw,
    data,
    tokenize_dataset,
    convert,
    parity,
    plan,
)

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
COMPLETED = "LAVIT_COMPLETED"  # names a file to write once all is done

DESCRIPTION = "LaVIT in JAX: train it, then tokenize, caption, answer about and draw pictures."
EPILOG = """\
first steps:
  lavit quickstart
  lavit caption cat.png
  lavit draw "waving hand dark skin tone"
  lavit COMMAND --help

environment:
  LAVIT_WORKDIR   default of --workdir
  LAVIT_DEBUG=1   show the traceback of an error
  LAVIT_COMPLETED=FILE   is written when all is done, not after SIGTERM
"""


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage in front."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if status == 0:  # --help and --version
            _complete()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Asks for the installed version only when it is wanted: that takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from importlib import metadata

        try:
            version = metadata.version("lavit_jax")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"lavit {version}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of `lavit` and all its subcommands."""
    raw = argparse.RawDescriptionHelpFormatter
    helps = {_name(command): (command.__doc__ or "").strip() for command in COMMANDS}
    # Our own list: argparse breaks the line after the longest name.
    listed = "\n".join(f"  {name:16} {_first_line(text)}" for name, text in helps.items())
    parser = _Parser(
        prog="lavit",
        usage="lavit [-h] [--version] COMMAND ...",
        description=DESCRIPTION,
        epilog=f"commands:\n{listed}\n\n{EPILOG}",
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(prog="lavit", metavar="COMMAND", help=argparse.SUPPRESS)
    for command in COMMANDS:
        sub = commands.add_parser(
            _name(command),
            description=helps[_name(command)],
            epilog=command.EXAMPLES,
            formatter_class=raw,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, sub=sub)
    return parser


def _name(command: Command) -> str:
    return command.__name__.rpartition(".")[2].replace("_", "-")


def _first_line(text: str) -> str:
    return text.partition("\n")[0].rstrip(".")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `lavit` with the given arguments (default: the process's) and returns its exit status.

    0 success, 1 a comparison failed or a bug, 2 a mistake in arguments or files, 130 interrupted.
    """
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if "run" not in args:
        parser.print_help(sys.stderr)
        return EXIT_MISTAKE
    if "overrides" in args:
        args.overrides = rest  # --config.field=value; the config says which fields there are
    elif rest:
        args.sub.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.run is not convert.run:  # which uses large blocks once, and should give them back
        allocator.keep_freed_memory()
    allocator.collect_rarely()
    try:
        with memory_told("commands that use a model split it over several by --mesh tensor=4"):
            status = args.run(args) or 0
        _complete()
        return status
    except KeyboardInterrupt:
        hint = "; run the same command again to go on" if "resumes" in args else ""
        print(f"\nlavit: stopped{hint}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; keep Python from complaining about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("LAVIT_DEBUG", "") not in ("", "0"):
            raise
        print(f"lavit: error: {one_line(error)}", file=sys.stderr)
        return EXIT_MISTAKE


def _complete() -> None:
    """Lets whoever started this tell its end from that of one that was stopped."""
    if file := os.environ.get(COMPLETED):
        with open(file, "w") as written:
            written.write("completed\n")


def one_line(error: Exception) -> str:
    """What went wrong, for someone who has never seen our code."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UserError | OSError):
        return text
    return f"{text} (LAVIT_DEBUG=1 shows where)"
