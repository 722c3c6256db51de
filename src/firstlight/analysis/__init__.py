"""What is computed from a run: phases, causes, figures, comparisons. Pure functions."""
