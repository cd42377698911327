"""Evaluation of frozen features: weighted kNN and a linear probe, beside two encoders that learnt nothing."""

from fastssl.eval.features import extract
from fastssl.eval.knn import KNNConfig, knn_accuracy, knn_predict
from fastssl.eval.linear import LinearProbe, linear_probe
from fastssl.eval.protocol import EvalConfig, Row, Scores, evaluate

__all__ = [
    "EvalConfig",
    "KNNConfig",
    "LinearProbe",
    "Row",
    "Scores",
    "evaluate",
    "extract",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
]
