"""What a caller may do: invoke, read and write functions, by patterns of their names.

The rights are those of the access key that signed the request. If requests are not signed, any
client may do everything.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from starlette.types import Scope

from firstlight.agile.functions.settings import ARN

Right = Literal["invoke", "read", "write"]
RIGHTS: tuple[Right, ...] = ("invoke", "read", "write")


@dataclass(frozen=True)
class Caller:
    """The owner of an access key: its profile's name, the secret, and patterns for each right.

    ``rights`` is None for an owner with all rights.
    """

    name: str
    secret: str
    rights: dict[Right, tuple[str, ...]] | None = None

    def may(self, right: Right, function: str) -> bool:
        """Whether it has a right to the function of this name; ``*`` stands for all functions."""
        if self.rights is None:
            return True
        patterns = self.rights.get(right, ())
        if function == "*":  # ? and [*] match it too
            return "*" in patterns
        return any(fnmatchcase(function, pattern) for pattern in patterns)


class Refused(Exception):
    """An authenticated caller lacks the right."""


def name(scope: Scope) -> str:
    """The caller's name; empty if requests are not signed."""
    caller: Caller | None = scope.get("state", {}).get("caller")
    return caller.name if caller else ""


def may(scope: Scope, right: Right, function: str) -> bool:
    """Whether a request's caller has a right to a function."""
    caller: Caller | None = scope.get("state", {}).get("caller")
    return caller is None or caller.may(right, function)


def check(scope: Scope, right: Right, action: str, function: str) -> None:
    """Raise Refused, with the API's error, if the caller lacks the right."""
    if not may(scope, right, function):
        raise Refused(
            f"User: arn:aws:iam::000000000000:user/{name(scope)} is not authorized to perform: "
            f"lambda:{action} on resource: {ARN}{function} because its access key has no right to "
            f"{right} it"
        )
