"""A control plane and a node of one machine, in namespaces of their own.

``programs`` says what is built, ``settings`` what each component is given, ``node`` is the process
whose end is everyone's, ``running`` is the cluster seen from outside it.
"""
