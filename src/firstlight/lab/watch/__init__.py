"""Watches a node in use: follows the starts that its container runtimes make.

window      the time for which the whole tracer is attached: from the first sign of a start until no
            start has been in progress for a moment
program     an execution of a program that takes part in starts, with its arguments
start       what brings up a container: the programs that name it, and their children
"""
