"""The tests here run on the real kernel, with what such tests of the core share."""

from tests.host.conftest import bench, can_trace, traced_lab

__all__ = ["bench", "can_trace", "traced_lab"]
