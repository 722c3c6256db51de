"""containerd's shim as a resident server: the RuntimeClass ``firstlight``.

``keeper`` is the line to what does not end (native/shim/keeper.c), ``service`` answers containerd.
"""
