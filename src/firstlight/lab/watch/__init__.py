"""Watching a node in use: the starts that its container runtimes make, as they make them.

window      the time for which the whole tracer is attached: from the first sign of a start until
            no start has gone on for a moment
program     one execution of a program that takes part in starts, with its arguments
start       what brings one container up: the programs that name it, and their children
"""
