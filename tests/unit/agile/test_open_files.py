"""The limit of open files that a runtime begins with, where its caller has a low one."""

import re
import subprocess
import sys
from pathlib import Path

CODE = """
import resource
from firstlight.agile import rights
from firstlight.errors import Unsupported
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    rights.raise_open_files()
    print(resource.getrlimit(resource.RLIMIT_NOFILE))
except Unsupported as error:
    print(error.message)
"""


def test_a_low_limit_of_open_files_is_raised_or_refused_by_name() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    held = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    assert held
    assert done.stdout.strip() == (
        "(1048576, 1048576)" if int(held[1], 16) >> 24 & 1
        else "at most 64 files may be open, and an instance may have 1024"
    ), done.stderr  # fmt: skip
