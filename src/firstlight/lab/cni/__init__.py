"""Calls plugins of the Container Network Interface, specification 1.0 and 1.1.

network       a configuration file: a name, versions, a list of plugins
plugin        an executable, called with a command, an environment and JSON on standard input
attachment    an interface of a container in a network: ADD makes it, DEL removes it
result        the output of ADD: interfaces, addresses, routes
"""
