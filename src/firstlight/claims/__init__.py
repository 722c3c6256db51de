"""The claims of the 2021 paper, and what a run makes true or false."""
