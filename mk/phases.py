"""Write the table of phases at the end of docs/phases.md again, from ``analysis/phases.py``."""

from pathlib import Path

from firstlight.analysis import phases

DOCUMENT = Path("docs/phases.md")

text = DOCUMENT.read_text()
table = text.index("\n| phase | ")
DOCUMENT.write_text(f"{text[:table]}\n{phases.markdown()}")
