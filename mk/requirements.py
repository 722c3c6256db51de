"""Print what to install before firstlight itself: its build, run and development requirements.

pyproject.toml pins them.
"""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
for group in (
    project["build-system"]["requires"],
    project["project"]["dependencies"],
    *project["project"]["optional-dependencies"].values(),
):
    print(*group, sep="\n")
