"""A runtime of the Container Network Interface, specification 1.0 and 1.1.

network       what a configuration file describes: a name, versions, a list of plugins
plugin        one executable, called with a command, an environment and JSON on standard input
attachment    one interface of one container in one network: what ADD makes and DEL unmakes
result        what ADD returned: interfaces, addresses, routes
"""
