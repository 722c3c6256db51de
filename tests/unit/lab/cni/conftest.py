from tests.support.cni_bench import bench

__all__ = ["bench"]
