"""How a command ends: its exit code, and one sentence on stderr where it could not do what was asked."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable

from dynamics.extras import MissingExtra
from dynamics.runs.durable.errors import ERROR, HOLDS, BadInput, Interrupted, RunError, Unusable
from dynamics.runs.printable import printable


def ended(command: Callable[[], int]) -> int:
    """The exit code of a command; errors that no user can help are raised.

    A closed stdout or stderr is one that nobody reads.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        try:
            os.getcwd()
        except FileNotFoundError:
            raise Unusable("the current folder is not there (any more)") from None
        try:
            code = command()
        except SystemExit as stopped:  # the parser's, after --help or a flag that it does not know
            code = stopped.code if isinstance(stopped.code, int) else HOLDS
        sys.stdout.flush()
        return code
    except RunError as error:
        return _said(error, error.code)
    except MissingExtra as error:
        return _said(error, BadInput.code)
    except KeyboardInterrupt:
        return _said("interrupted", Interrupted.code)
    except BrokenPipeError:  # the reader of our output, `head` or a pager, has left
        _give_up_stdout()
        return HOLDS
    except OSError as error:
        if error.filename is not None:
            raise
        _give_up_stdout()  # a full disk behind it, say
        return _said(f"stdout: cannot be written: {error.strerror}", ERROR)


def started(prog: str) -> list[str]:
    """The words of ``prog`` with its first as it was really typed: ``.venv/bin/python`` for ``python``, say.

    Args:
        prog: ``python -m MODULE``, ``python FILE`` or ``dynamics run NAME``.
    """
    first, *rest = shlex.split(prog)
    if first == "python":
        typed = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv)]  # and its own flags, before -m or the file
        return [*(typed[:-1] if typed[-1:] in (["-m"], ["-c"]) else typed or [first]), *rest]
    here, found = sys.argv[0], shutil.which(first)
    elsewhere = os.path.basename(here) == first and not (found and os.path.samefile(found, here))
    return [here if elsewhere else first, *rest]


def _said(error: object, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(map(printable, f"error: {error}".splitlines())), file=sys.stderr, flush=True)
    return code


def _give_up_stdout() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
