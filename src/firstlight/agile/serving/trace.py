"""Trace contexts, as W3C and as AWS X-Ray write them."""

import os
import re
import time

_W3C = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def to_xray(trace: str) -> str:
    """A ``traceparent`` in the form that Lambda gives to handlers; anything else is unchanged.

    https://www.w3.org/TR/trace-context/, and X-Ray's "Tracing header".
    """
    match = _W3C.fullmatch(trace)
    if not match:
        return trace
    root, parent, flags = match.groups()
    return f"Root=1-{root[:8]}-{root[8:]};Parent={parent};Sampled={int(flags, 16) & 1}"


def unsampled() -> str:
    """The X-Ray header of an event that came without a trace: as in Lambda, handlers have one."""
    digits = os.urandom(20).hex()
    return f"Root=1-{int(time.time()):08x}-{digits[:24]};Parent={digits[24:]};Sampled=0"
