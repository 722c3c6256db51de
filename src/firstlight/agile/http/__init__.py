"""What a node serves over HTTP: functions by their APIs, and figures of itself."""
