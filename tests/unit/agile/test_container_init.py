"""The first process of a PID namespace."""

import os
import subprocess
import sys

import pytest

UNSHARE = ["unshare", *(("--user", "--map-root-user") if os.geteuid() else ()), "--pid", "--fork",
           "--kill-child", "--mount-proc"]  # fmt: skip
PROGRAM = """
import os, signal, sys, time
from firstlight.agile import container_init
container_init.leave_first()
assert os.getpid() == 2
orphan_in, orphan_out = os.pipe()
if not os.fork():  # its child becomes an orphan, of the first process
    if not os.fork():
        os.write(orphan_out, b"%d" % os.getpid())
    os._exit(0)
os.wait()
orphan = int(os.read(orphan_in, 16))
until = time.monotonic() + 60
while os.path.exists(f"/proc/{orphan}"):
    assert time.monotonic() < until, "it is not reaped"
    time.sleep(0.01)
if sys.argv[1] == "status":
    sys.exit(7)
signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
os.kill(1, signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.parametrize(("how", "status"), [("status", 7), ("signal", 9)])
def test_init_reaps_orphans_and_forwards_signals_and_status(how: str, status: int) -> None:
    if subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("no PID namespaces can be made")
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-c", PROGRAM, how],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
