"""The first process of a container inherits orphans, and must reap them."""

import os
import signal
from types import FrameType

_PASSED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def leave_first() -> None:
    """Continue in a child if this is the first process, which then reaps and forwards signals.

    Call it before there are threads.
    """
    if os.getpid() != 1:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED)
    child = os.fork()
    if child:

        def pass_on(number: int, _frame: FrameType | None) -> None:
            os.kill(child, number)

        for number in _PASSED:
            signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while child:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
