"""An experiment on the nodes of a cluster: a Job on each measures it there.

``jobs`` makes and follows them, ``inside`` is what they run, ``merge`` makes one run of theirs.
"""
