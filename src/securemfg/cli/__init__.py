"""The command line: `securemfg` or `python -m securemfg`. Exit codes: see `output.Exit`."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from securemfg.cli.output import Exit, fail

__all__ = ["app", "main"]


def _version(wanted: bool) -> None:
    if wanted:
        from securemfg import __version__

        typer.echo(f"securemfg {__version__}")
        raise typer.Exit


def app() -> typer.Typer:
    """The application: each file of this room adds its verbs."""
    from securemfg.cli import artifacts, audit, demo, doctor, files, keys, report, settings

    root = typer.Typer(
        name="securemfg",
        help="Secure-workflow middleware for AI in manufacturing.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @root.callback()
    def options(
        *,
        version: Annotated[  # noqa: ARG001 - its callback does it all
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
        ] = False,
        no_color: Annotated[bool, typer.Option("--no-color", help="No colours (as NO_COLOR=1).")] = False,
    ) -> None:
        if no_color:
            os.environ["NO_COLOR"] = "1"

    settings.add_to(root)
    keys.add_to(root)
    files.add_to(root)
    artifacts.add_to(root)
    audit.add_to(root)
    report.add_to(root)
    doctor.add_to(root)
    demo.add_to(root)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    code = _run(arguments)
    try:
        sys.stdout.flush()  # here, not at the interpreter's end: whoever reads may have had enough by now
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(arguments: list[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        result = app()(args=given, prog_name="securemfg", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        return int(Exit.INTERRUPTED)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer ends so when `securemfg audit show | head` has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return int(Exit.CLEAN)
        return end.code if isinstance(end.code, int) else int(Exit.CLEAN)
    except Exception as error:  # noqa: BLE001 - the last place: a usage error, or something unexpected
        as_json = "--json" in given
        show = getattr(error, "show", None)  # click's own, which typer brings in its own copy
        code = Exit.UNEXPECTED if show is None else Exit.USAGE
        if show is not None and not as_json:
            show()
            return int(code)
        if show is None:
            traceback.print_exc()
        try:
            fail(error, code, as_json=as_json)
        except SystemExit:
            return int(code)
    return result if isinstance(result, int) else int(Exit.CLEAN)
