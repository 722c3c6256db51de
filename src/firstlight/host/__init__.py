"""Facts about this machine; namespaces, cgroups and mounts to work in."""
