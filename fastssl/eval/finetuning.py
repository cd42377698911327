"""Fine-tuning: an encoder and a linear classifier trained with labels, all of it or the last blocks alone.

As in MAE (arXiv:2111.06377, appendix A.1 and section 4.3): AdamW, a rate that falls with the distance from the output,
smoothed labels, and how many blocks are tuned, from none to all. Without its mixing of images and dropped paths, which
are for networks larger than those that learn here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data.images import ImageSet
from fastssl.data.loader import Schedule
from fastssl.data.plans import ViewPlan
from fastssl.data.rows import identity
from fastssl.data.views import make_views
from fastssl.errors import UserError
from fastssl.eval.features import extract
from fastssl.eval.scoring import accuracy
from fastssl.files import atomic_write
from fastssl.models import feature_dim
from fastssl.models.depth import Layers, Tuned, layers
from fastssl.models.vit import VisionTransformer
from fastssl.optim import OptimConfig, build_optimizer, learning_rate, set_rates, weight_decay

VIT_DECAY = 0.75  # arXiv:2111.06377, table 9
Watch = Callable[[int, int], None]


def _adamw() -> OptimConfig:
    return OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05, warmup_epochs=1)


@dataclass(frozen=True)
class FinetuneConfig:
    """How an encoder is fine-tuned.

    Attributes:
        epochs: passes over the labelled images.
        least_steps: where those make fewer steps, as with few labels, there are more passes until there are so many.
        batch_size: images a step; all of them, where there are fewer.
        layer_decay: factor of the learning rate from each block to the one before it; null is 0.75 for a Vision
            Transformer, as in MAE, and 1 for others.
        label_smoothing: share of the target that all classes have alike.
        crop: least share of an image's area that a view shows; views are flipped too.
        precision: "bfloat16" computes the forward pass under autocast; the weights stay float32.
        optim: the optimiser.
    """

    epochs: int = 20
    least_steps: int = 400
    batch_size: int = 256
    layer_decay: float | None = None
    label_smoothing: float = 0.1
    crop: float = 0.35
    precision: Literal["float32", "bfloat16"] = "float32"
    optim: OptimConfig = field(default_factory=_adamw)

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("least_steps", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise UserError(f"the {name} of fine-tuning must be {least} or more; got {getattr(self, name)}")
        decay = self.layer_decay
        if decay is not None and not 0 < decay <= 1:
            raise UserError(f"the layer_decay of fine-tuning must be above 0 and at most 1; got {decay}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"the label_smoothing of fine-tuning must lie in [0, 1); got {self.label_smoothing}")
        if not 0 < self.crop <= 1:
            raise UserError(f"the crop of fine-tuning must be above 0 and at most 1; got {self.crop}")

    def view_plan(self, size: int) -> ViewPlan:
        """One view by crop and flip."""
        return ViewPlan(size=size, crop_scale=(self.crop, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5)

    def decay_for(self, encoder: nn.Module) -> float:
        """The factor of the learning rate from block to block."""
        if self.layer_decay is not None:
            return self.layer_decay
        return VIT_DECAY if isinstance(encoder, VisionTransformer) else 1.0


class Classifier(nn.Module):
    """An encoder and a linear layer that begins at zero, so that neither needs a seed.

    Args:
        encoder: copied; (N, 3, H, W) to (N, F).
        classes: number of classes.
        tuned: how much of the encoder is trained. The rest keeps its weights and, with them, what its batch
            normalisation has seen.
    Raises:
        UserError: for a number of blocks that the encoder does not have.
    """

    def __init__(self, encoder: nn.Module, classes: int, tuned: Tuned = "all") -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.layers: Layers = layers(self.encoder)
        names = self.layers.tuned(tuned)
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in names)
        self.head = nn.Linear(feature_dim(encoder), classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> Classifier:
        """Training mode for the parts that are trained alone."""
        for part in self.modules():
            part.training = mode and any(p.requires_grad for p in part.parameters())
        return self

    def scales(self, decay: float) -> dict[str, float]:
        """Factors of the learning rate by parameter, ``decay`` times smaller with each block towards the input."""
        return {f"encoder.{name}": scale for name, scale in self.layers.scales(decay).items()}

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W). Returns (N, classes) logits."""
        logits: Tensor = self.head(self.encoder(x))
        return logits


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning made.

    Attributes:
        classifier: the tuned network, in evaluation mode, on the device it was trained on.
        accuracy: on the test set, after the last step, in [0, 1].
        parameters: how many of the encoder's were trained.
        steps: of the optimiser.
    """

    classifier: Classifier
    accuracy: float
    parameters: int
    steps: int


def finetune(
    encoder: nn.Module,
    train: ImageSet,
    test: ImageSet,
    *,
    size: int,
    tuned: Tuned = "all",
    config: FinetuneConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    watch: Watch = lambda done, total: None,
) -> Finetuned:
    """Trains ``encoder`` and a linear classifier on labelled images; the encoder given stays as it is.

    Nothing is chosen by the test set: its accuracy is that after the last step.

    Args:
        encoder: (N, 3, size, size) to (N, F).
        train, test: with labels, int64, of the same classes.
        size: side of what the encoder sees, in pixels.
        tuned: its last blocks that are trained, 0.5 for the MLP of a transformer's last, or "all" of it.
        config: defaults to ``FinetuneConfig()``.
        seed: of the order of the images and their views.
        device: where to train.
        checkpoint: file that keeps the state after each epoch; training that was stopped goes on from there, to the
            same bits. It is removed at the end.
        watch: called after each step with (steps done, steps in all).
    Raises:
        UserError: for images without labels, a number of blocks that the encoder does not have, or a loss that is not
            finite.
    """
    config = config or FinetuneConfig()
    trainer = _Trainer(encoder, train, size, tuned, config, seed, torch.device(device))
    if test.labels is None:
        raise UserError(f"{test.source} has no labels to score fine-tuning against")
    if checkpoint is not None and checkpoint.exists():
        trainer.restore(checkpoint)
    while trainer.epoch < trainer.epochs:
        trainer.run_epoch(watch)
        if checkpoint is not None and trainer.epoch < trainer.epochs:
            trainer.save(checkpoint)
    classifier = trainer.classifier.eval()
    logits = extract(classifier, test.images, size=size, device=device)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    count = sum(p.numel() for p in classifier.encoder.parameters() if p.requires_grad)
    return Finetuned(classifier, accuracy(logits.argmax(dim=1), test.labels), count, trainer.steps_total)


class _Trainer:
    def __init__(
        self,
        encoder: nn.Module,
        train: ImageSet,
        size: int,
        tuned: Tuned,
        config: FinetuneConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        if train.labels is None:
            raise UserError(f"{train.source} has no labels to fine-tune with")
        self.images, self.labels, self.config, self.device = train.images, train.labels, config, device
        self.schedule = Schedule(len(train), min(config.batch_size, len(train)), seed)
        self.plan = config.view_plan(size)
        self.classifier = Classifier(encoder, len(train.classes), tuned).to(device)
        self.optimizer = build_optimizer(
            self.classifier, config.optim, scales=self.classifier.scales(config.decay_for(encoder))
        )
        self.per_epoch = self.schedule.steps_per_epoch
        self.epochs = max(config.epochs, math.ceil(config.least_steps / self.per_epoch))
        self.epoch = 0
        told = {"config": asdict(config), "size": size, "tuned": tuned, "seed": seed, "data": _told(train)}
        self.settings = json.dumps(told)

    @property
    def steps_total(self) -> int:
        return self.epochs * self.per_epoch

    def run_epoch(self, watch: Watch) -> None:
        self.classifier.train()
        for step, chosen in self.schedule.chosen(self.epoch):
            images, labels = self.images[chosen].to(self.device), self.labels[chosen].to(self.device)
            (view,) = make_views(images, self.plan, self.schedule.generator(self.epoch, step))
            done = self.epoch * self.per_epoch + step
            self._update(view, labels, done)
            watch(done + 1, self.steps_total)
        self.epoch += 1

    def _update(self, view: Tensor, labels: Tensor, done: int) -> None:
        when = dict(total=self.steps_total, per_epoch=self.per_epoch)
        optim = self.config.optim
        set_rates(self.optimizer, learning_rate(optim, done, **when), weight_decay(optim, done, **when))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            logits = self.classifier(view)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
        if not bool(loss.isfinite()):
            raise UserError(
                f"fine-tuning diverged: the loss is {loss.item()} at step {done + 1}; give a smaller learning rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def save(self, path: Path) -> None:
        state = {
            "settings": self.settings,
            "model": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
        }
        with atomic_write(path) as partial:
            torch.save(state, partial)

    def restore(self, path: Path) -> None:
        """The state in ``path``, if it is that of the same training; else the beginning."""
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] == self.settings:
            self.classifier.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch = state["epoch"]


def _told(data: ImageSet) -> str:
    """What tells one training set from another."""
    assert data.labels is not None
    return hashlib.blake2b(identity(data.images) + data.labels.numpy().tobytes(), digest_size=8).hexdigest()
