"""What can go wrong, as one small tree: every error names the object and the fact, and hints.

The command line prints ``message`` and ``hint`` and exits with ``exit_status``.
"""

from collections.abc import Iterable


class FirstlightError(Exception):
    """An error whose message names the object and the fact, and whose hint says what to do."""

    exit_status = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Unsupported(FirstlightError):
    """This machine lacks a kernel feature, a privilege, a program or space."""


class NotApplicable(Unsupported):
    """A combination that no machine has: nothing that could be installed would bring it."""


class UnknownName(FirstlightError):
    """A name that is not one of ours; the hint lists those that are."""

    def __init__(self, what: str, name: str, valid: Iterable[str]) -> None:
        super().__init__(
            f"unknown {what} {name!r}", f"valid: {', '.join(valid) or 'there is none'}"
        )


class BadRun(FirstlightError):
    """A run that cannot be read: truncated, foreign, or of a newer schema."""


class Failed(FirstlightError):
    """A program or system call that firstlight itself needs has failed."""
