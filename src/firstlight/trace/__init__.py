"""The tracer: eBPF programs on tracepoints, and their events as spans."""
