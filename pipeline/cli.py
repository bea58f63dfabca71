"""The `pipeline` command: reads the command line, runs one verb, turns errors into exit codes."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from types import FrameType
from typing import Annotated

import typer

from pipeline.commands import (
    cache,
    configs,
    convert_checkpoint,
    data,
    demo,
    depth,
    doctor,
    evaluate,
    export,
    label,
    masks,
    predict,
    report,
    run,
    status,
    train,
)
from pipeline.commands.examples import add_examples
from pipeline.config import split_assignments
from pipeline.errors import ExitCode, describe_error, exit_code_of
from pipeline.output import configure_logging, render_document
from pipeline.process_settings import restart_with_settings

logger = logging.getLogger(__name__)

# Set by SIGTERM: workers get it too, and their death may be noticed as another error first.
_is_interrupted = False

# They write all that they make at their end.
_VERBS_WITHOUT_STATE = (
    "convert-checkpoint", "data check", "data export", "data import", "eval", "export", "label",
    "predict", "report",
)  # fmt: skip

app = typer.Typer(
    name="pipeline",
    help="Instance masks from boxes and pseudo depth: compute depth once, then train on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.run_demo)
app.command("doctor")(doctor.run_doctor)
app.command("configs")(configs.list_configs)
app.add_typer(data.app, name="data")
app.command("masks")(masks.make_masks)
app.command("depth")(depth.compute_depth)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("label")(label.label)
app.command("run")(run.run)
app.command("status")(status.show_status)
app.command("resume")(run.resume)
app.command("report")(report.write_run_report)
app.command("convert-checkpoint")(convert_checkpoint.convert)
app.command("export")(export.export)
app.add_typer(cache.app, name="cache")
add_examples(app)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        sys.stdout.write(f"boxdepth {metadata.version('boxdepth')}\n")
        raise typer.Exit


@app.callback()
def _take_global_options(
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
    _verbose: Annotated[
        bool, typer.Option("--verbose", help="Log what libraries do, too; stands anywhere.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `pipeline` program.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Raises:
        SystemExit: always, with an exit code of `ExitCode`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        restart_with_settings(arguments)
        signal.signal(signal.SIGTERM, _interrupt)
    configure_logging(verbose="--verbose" in arguments)
    sys.exit(invoke([argument for argument in arguments if argument != "--verbose"]))


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line in this process.

    Args:
        arguments: arguments without the program's name.

    Returns:
        Exit code.
    """
    try:
        returned = app(split_assignments(arguments), standalone_mode=False, prog_name="pipeline")
    except (KeyboardInterrupt, typer.Abort):
        returned = ExitCode.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads any more; a message would raise again
        return ExitCode.FAILED
    except Exception as error:
        if _is_interrupted:
            logger.warning("interrupted (%s); %s", error, _how_to_resume(arguments))
            return ExitCode.INTERRUPTED
        if hasattr(error, "format_message"):  # the parser's own errors
            code, message = ExitCode.USAGE, str(error.format_message())
        else:
            code, message = exit_code_of(error), describe_error(error)
            logger.debug("the error's origin", exc_info=error)
            if code == ExitCode.FAILED and _is_a_bug(error):
                logger.exception("unexpected error")
        sys.stderr.write(f"pipeline: error: {message}\n")
        if "--json" in arguments:
            failure = {"type": type(error).__name__, "message": message, "exit_code": int(code)}
            sys.stdout.write(render_document("error", {"error": failure}) + "\n")
        return code
    if returned == ExitCode.INTERRUPTED:  # some versions of the parser make Ctrl-C into this code
        logger.warning("interrupted; %s", _how_to_resume(arguments))
    return returned if isinstance(returned, int) else ExitCode.DONE


def _how_to_resume(arguments: Sequence[str]) -> str:
    command = shlex.join(["pipeline", *arguments])
    if any(" ".join(arguments[:length]) in _VERBS_WITHOUT_STATE for length in (1, 2)):
        return f"nothing is kept; the same command starts over: {command}"
    return f"what is done is kept; to go on: {command}"


def _is_a_bug(error: Exception) -> bool:
    """Whether the error is of a kind that no user input should cause."""
    return isinstance(error, (TypeError, AttributeError, AssertionError, IndexError, NameError))


def _interrupt(_signal_number: int, _frame: FrameType | None) -> None:
    """Treat a polite request to end like Ctrl-C, so that the state is recorded as resumable."""
    global _is_interrupted  # noqa: PLW0603 - a signal handler has no other place to tell it
    _is_interrupted = True
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
