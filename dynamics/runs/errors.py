"""What can go wrong with a run, each with the exit code of the command line."""

from __future__ import annotations


class RunError(Exception):
    """A run that ends with one sentence instead of a traceback; ``code`` is the command line's exit code."""

    code = 1


class BadInput(RunError):
    """A flag, a setting or a name that is not allowed: nothing was written."""

    code = 2


class Interrupted(RunError):
    """Stopped by a signal with everything so far committed: the same command resumes it."""

    code = 3


class Unusable(RunError):
    """The run directory cannot be used: in use, corrupt, made by other settings, or on a full or read-only disk."""

    code = 4


class InUse(Unusable):
    """Another process writes to the run directory."""


class Damaged(Unusable):
    """A file of a run is not what was written."""


HOLDS, ERROR, CLAIM_FAILS = 0, 1, 5
"""Exit codes without an exception of their own: every applicable claim holds; unexpected error; a claim fails."""
