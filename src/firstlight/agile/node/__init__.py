"""The node, seen from its manager: its process, its messages, and what it runs."""
