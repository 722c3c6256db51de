"""The keeper of a cluster that is interrupted."""

import os
import signal

import pytest

from firstlight.lab.cluster import standing


def test_a_second_signal_does_not_interrupt_the_removal() -> None:
    before = signal.signal(signal.SIGTERM, standing._end)
    try:
        with pytest.raises(standing._Ended):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
