"""Evaluation: frozen features by kNN, a linear probe and tracking, fine-tuning, few labels, the pretext task itself."""

from fastssl.eval.features import extract
from fastssl.eval.few import few_labels
from fastssl.eval.finetuning import Classifier, FinetuneConfig, Finetuned, finetune
from fastssl.eval.knn import KNNConfig, knn_accuracy, knn_predict
from fastssl.eval.linear import LinearProbe, linear_probe
from fastssl.eval.pretext import Pretext, pretext_score
from fastssl.eval.protocol import EvalConfig, Row, Scores, evaluate, score_encoder
from fastssl.eval.tracking import TrackConfig, TrackScores, evaluate_tracking, track

__all__ = [
    "Classifier",
    "EvalConfig",
    "FinetuneConfig",
    "Finetuned",
    "KNNConfig",
    "LinearProbe",
    "Pretext",
    "Row",
    "Scores",
    "TrackConfig",
    "TrackScores",
    "evaluate",
    "evaluate_tracking",
    "extract",
    "few_labels",
    "finetune",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "pretext_score",
    "score_encoder",
    "track",
]
