"""What this machine is, and the namespaces that work is done in."""
