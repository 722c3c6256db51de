"""What the runtime's own processes log: lines on standard error."""

import logging

from firstlight.errors import printable


class _Lines(logging.Formatter):
    """A message is one line: no word of a function in it looks like a message of ours, or commands
    a terminal.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as the base has it
        return printable(super().formatMessage(record))


def log_lines(form: str = "%(message)s", level: int = logging.WARNING) -> None:
    """Log so, unless something else in this process has set up logging."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(form))
    logging.basicConfig(level=level, handlers=[handler])
