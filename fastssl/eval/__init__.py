"""Evaluation of frozen features: kNN, a linear probe and tracking, beside encoders that learnt nothing."""

from fastssl.eval.features import extract
from fastssl.eval.knn import KNNConfig, knn_accuracy, knn_predict
from fastssl.eval.linear import LinearProbe, linear_probe
from fastssl.eval.protocol import EvalConfig, Row, Scores, evaluate
from fastssl.eval.tracking import TrackConfig, TrackScores, evaluate_tracking, track

__all__ = [
    "EvalConfig",
    "KNNConfig",
    "LinearProbe",
    "Row",
    "Scores",
    "TrackConfig",
    "TrackScores",
    "evaluate",
    "evaluate_tracking",
    "extract",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "track",
]
