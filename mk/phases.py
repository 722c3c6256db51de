"""Regenerate the table of phases in docs/phases.md from ``analysis/phases.py``."""

from pathlib import Path

from firstlight.analysis import phases

DOCUMENT = Path("docs/phases.md")

text = DOCUMENT.read_text()
table = text.index("\n| phase | ")
DOCUMENT.write_text(f"{text[:table]}\n{phases.markdown()}")
