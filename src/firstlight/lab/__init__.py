"""Makes runs: experiments, the backends that they start, the runner, doctor and clean."""
