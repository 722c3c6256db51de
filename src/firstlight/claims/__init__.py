"""The claims of the 2021 paper, judged by runs."""
