"""What starts are made from, prepared ahead: networks, cgroups and mounted trees."""
