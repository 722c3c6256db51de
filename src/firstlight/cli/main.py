"""The command ``firstlight``: assembles the verbs, and turns errors into exit statuses.

Each verb imports what it needs when it runs, to keep ``--help`` and the runtime's verbs quick.
"""

import codecs
import errno
import io
import os
import signal
import sys
import warnings
from fcntl import F_GETFL, fcntl
from itertools import takewhile
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer import _completion_shared

import firstlight
from firstlight.cli import (
    agile,
    cluster,
    function,
    gate,
    guest,
    host,
    instance,
    memory,
    plan,
    pods,
    programs,
    report,
    run,
    trace,
    watch,
)
from firstlight.cli.output import examples, in_any_locale, say
from firstlight.errors import FirstlightError, describe

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
_SHORTAGES = _DISK_ERRORS | {
    errno.EAGAIN, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS,
}  # fmt: skip
_REFUSALS = {errno.EPERM, errno.ENOSYS}
"""What a host may lack, or refuse, anywhere. Another error of no file shows its traceback."""
_INTERRUPTED = 128 + signal.SIGINT
_MOMENT = 0.001
_FOR_OTHERS = frozenset({"trace", "agile"})
"""Verbs that pass the caller's environment on; of the runtime's only servers look for programs."""
_READERS = frozenset({"run", "trace", "watch", "report", "compare", "gate", "claims"})

# zsh reads the file at the first TAB, as a function of its name: it has to complete at once.
_completion_shared._completion_scripts["zsh"] += """
if [ "$funcstack[1]" = "_%(prog_name)s" ]; then
  %(complete_func)s "$@"
fi
"""

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure and explain how containers, their networks and VMs start on this machine.",
    epilog=examples(
        "doctor", "run container-creation --fast", "report runs/* --html report.html",
        "trace -- runc run mine", "agile start --rootfs /srv/root -- /bin/hello",
    ),
)  # fmt: skip

for group in (host, run, trace, watch, report, gate):
    group.add_to(app)
agile.app.add_typer(instance.app)
agile.app.add_typer(pods.app)
plan.add_to(agile.app)
agile.app.add_typer(function.app, name="function")
app.add_typer(agile.app, name="agile")
app.add_typer(guest.app, name="guest")
app.add_typer(cluster.app, name="cluster")


def _print_version(requested: bool) -> None:
    if requested:
        sys.stdout.write(f"firstlight {firstlight.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    del version
    asks_help = {"-h", "--help"} & {*takewhile(lambda word: word != "--", sys.argv)}
    if context.invoked_subcommand in _READERS and not asks_help:
        memory.fit()
    if context.invoked_subcommand not in _FOR_OTHERS:
        programs.add_system()


def main() -> None:
    """Run a verb. An error becomes a message, a hint and an exit status."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            _main()
        finally:  # there is nothing left to undo: another signal just ends this
            for number, handler in before.items():
                signal.signal(number, handler)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _main() -> None:
    warnings.simplefilter("ignore", EncodingWarning)  # asked of every program by a variable
    # If the parent ignored it, the exit status of a child would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _open_standard_streams()
    codecs.register_error("firstlight", in_any_locale)
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="firstlight")
    sys.unraisablehook = _interrupt_again
    try:
        _handle_signals()
        _run_verb()
    except FirstlightError as error:
        _fail(error)
    except MemoryError as error:
        _fail(memory.too_little(str(error) or "more is needed"))
    except BrokenPipeError:
        sys.stdout = None
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in _SHORTAGES | _REFUSALS:
            raise
        refused = (
            "" if error.filename or error.errno in _SHORTAGES else "a system call is refused: "
        )
        say(f"firstlight: {refused}{describe(error)}")
        if error.errno in _DISK_ERRORS:
            sys.stdout = None  # what it still holds cannot be written
            say("Hint: free space where the output goes; firstlight doctor shows other lacks")
        else:
            what = "a seccomp filter or a capability may be why; " if refused else ""
            say(f"Hint: {what}run firstlight doctor to see what this host lacks")
        sys.exit(FirstlightError.exit_status)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _handle_signals() -> None:
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see firstlight.__main__
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail(error: FirstlightError) -> NoReturn:
    say(f"firstlight: {error.message}")
    if error.hint:
        say(f"Hint: {error.hint}")
    sys.exit(error.exit_status)


def _run_verb() -> None:
    try:
        app(standalone_mode=True)
    except FileNotFoundError as error:
        if error.filename is None and _is_nowhere():
            raise FirstlightError(
                "the working directory has been removed", "change to another directory"
            ) from error
        raise
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while numpy is imported
            raise error.__cause__ from None
        raise
    finally:
        if sys.stdout:
            sys.stdout.flush()


def _is_nowhere() -> bool:
    try:
        Path.cwd()
    except OSError:
        return True
    return False


def _open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed, or open the wrong way."""
    for number, name, mode in (0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"):
        if getattr(sys, name) is None or not _can(number, mode):
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115


def _can(descriptor: int, mode: str) -> bool:
    """Whether an open descriptor may be read or written."""
    access = fcntl(descriptor, F_GETFL) & os.O_ACCMODE
    return access in (os.O_RDWR, os.O_RDONLY if mode == "r" else os.O_WRONLY)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Have an interrupt that came while an object was finalized, where Python drops it, come
    again.
    """
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    signal.signal(signal.SIGALRM, _terminate)
    signal.setitimer(signal.ITIMER_REAL, _MOMENT)


def _terminate(number: int, _frame: object) -> None:
    del number
    raise KeyboardInterrupt
