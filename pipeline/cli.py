"""The `pipeline` command: runs one command line, turns errors and Ctrl-C into exit codes.

Nothing that takes time to import stands at the top: Ctrl-C is answered before the verbs are loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_EXIT_INTERRUPTED = 130  # `ExitCode.INTERRUPTED`, which is not loaded yet

# Set by a signal: workers get it too, and their death may be noticed as another error first.
_is_interrupted = False

# They write all that they make at their end.
_VERBS_WITHOUT_STATE = (
    "convert-checkpoint", "data check", "data export", "data import", "eval", "export", "label",
    "predict", "report",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `pipeline` program.

    Args:
        argv: arguments without the program's name; by default those of the process, whose signals
            are then answered too: with one sentence and `ExitCode.INTERRUPTED`, at any moment.

    Raises:
        SystemExit: always, with an exit code of `ExitCode`.
    """
    if argv is not None:
        sys.exit(_run(list(argv)))
    _answer_signals(_end_before_the_work)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)  # a restart holds them back
    arguments = sys.argv[1:]
    from pipeline.process_settings import restart_with_settings

    restart_with_settings(arguments)
    import pipeline.commands.app  # noqa: F401 - takes time, in which there is nothing to clean up

    try:
        _answer_signals(_interrupt)
        code = _run(arguments)
    except KeyboardInterrupt:  # again, while the first was answered
        code = _EXIT_INTERRUPTED
    finally:
        _answer_signals(_end_after_the_work)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    from pipeline.output import configure_logging

    configure_logging(verbose="--verbose" in arguments)
    return invoke([argument for argument in arguments if argument != "--verbose"])


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line in this process.

    Args:
        arguments: arguments without the program's name.

    Returns:
        Exit code.
    """
    import logging

    import typer

    from pipeline.commands import app as verbs
    from pipeline.config import split_assignments
    from pipeline.errors import ExitCode, describe_error, exit_code_of
    from pipeline.output import render_document

    logger = logging.getLogger(__name__)
    try:
        returned = verbs.app(
            split_assignments(arguments), standalone_mode=False, prog_name="pipeline"
        )
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
    import shlex

    command = shlex.join(["pipeline", *arguments])
    if any(" ".join(arguments[:length]) in _VERBS_WITHOUT_STATE for length in (1, 2)):
        return f"nothing is kept; the same command starts over: {command}"
    return f"what is done is kept; to go on: {command}"


def _is_a_bug(error: Exception) -> bool:
    """Whether the error is of a kind that no user input should cause."""
    return isinstance(error, (TypeError, AttributeError, AssertionError, IndexError, NameError))


def _answer_signals(answer: Callable[[int, FrameType | None], None]) -> None:
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # whoever started this wants it to go on
            signal.signal(number, answer)


def _interrupt(_signal_number: int, _frame: FrameType | None) -> None:
    """Unwind the verb, so that the state is recorded as resumable; for SIGTERM as for Ctrl-C."""
    global _is_interrupted  # noqa: PLW0603 - a signal handler has no other place to tell it
    _is_interrupted = True
    raise KeyboardInterrupt


def _end_before_the_work(_signal_number: int, _frame: FrameType | None) -> None:
    _end_at_once("interrupted before the work began; nothing was done")


def _end_after_the_work(_signal_number: int, _frame: FrameType | None) -> None:
    _end_at_once("interrupted after the work had ended; what was written is kept")


def _end_at_once(sentence: str) -> None:
    """Leave without unwinding: an exception in an import or at the exit would be a traceback."""
    with contextlib.suppress(OSError):  # nobody may read
        os.write(2, f"pipeline: {sentence}\n".encode())
    os._exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
