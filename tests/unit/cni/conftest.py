from cni_bench import bench

__all__ = ["bench"]
