"""The tracer: eBPF programs on tracepoints, and what they saw as spans."""
