"""lightly's module of the same name; the code stands in the package."""

from fastssl.compat.lightly.utils.benchmarking import knn_predict

__all__ = ["knn_predict"]
