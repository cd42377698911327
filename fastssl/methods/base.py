"""What a training loop may ask of a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data.plans import ViewPlan
from fastssl.schedule import Schedule


class Method(nn.Module):
    """A self-supervised method: an encoder, whatever networks it is trained with, and a loss on views of images.

    A subclass adds its networks in ``__init__``, says by :meth:`view_plan` which views it wants and computes its loss
    in ``forward``. It is written for one process and any device.

    Attributes:
        recipe: settings of a run in which the method's differ from those of other methods, by their names in a config
            file: ``{"encoder": "vit_micro", "optim": {"name": "adamw"}}``.
        Config: frozen dataclass of the method's own hyper-parameters; every field has a default and is documented.
        encoder: what is kept after pretraining; images (N, 3, H, W) to features (N, feature_dim).
        now: the current values of ``schedules`` by name, as the training loop has set them; at first their starts.
    """

    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    Config: ClassVar[type[Any]]
    encoder: nn.Module

    def __init__(self, encoder: nn.Module, config: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.now = {name: schedule.start for name, schedule in self.schedules.items()}
        self._noted: dict[str, Tensor | float] = {}

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Those of the settings that change while training, by name."""
        settings = {item.name: getattr(self.config, item.name) for item in fields(self.config)}
        return {name: value for name, value in settings.items() if isinstance(value, Schedule)}

    @classmethod
    def view_plan(cls, size: int) -> ViewPlan:
        """The views of ``size`` x ``size`` pixels that :meth:`forward` takes."""
        raise NotImplementedError

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: as many (N, 3, size, size) float32 batches as the plan says. Returns the scalar loss."""
        raise NotImplementedError

    def metrics(self, loss: float, batch_size: int) -> dict[str, float]:
        """Further numbers worth logging beside ``loss``, the mean over a batch of ``batch_size`` images.

        By default those that :meth:`note` was given in the last ``forward``; always under the same names.
        """
        return {name: float(value) for name, value in self._noted.items()}

    def note(self, **numbers: Tensor | float) -> None:
        """For ``forward``: keeps numbers of this batch, tensors of one element or floats, until :meth:`metrics`."""
        self._noted = {name: value.detach() if isinstance(value, Tensor) else value for name, value in numbers.items()}

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of a pretext task of classes; notes ``pretext_accuracy``, and ``chance``, what guessing gives.

        Args:
            logits: (M, classes) of any floating-point dtype; the loss is computed in float32.
            targets: (M,) int64 in [0, classes).
        Returns:
            The mean over the samples, a scalar.
        """
        right = logits.argmax(dim=1) == targets
        self.note(pretext_accuracy=right.float().mean(), chance=1 / logits.shape[1])
        return F.cross_entropy(logits.float(), targets)

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """What the method makes of ``views``, for the report: pictures by name, each (N, 3, H, W) like the views.

        Called in evaluation mode, without gradients; by default there are none.
        """
        return {}

    def before_step(self, step: int, *, total: int, per_epoch: int) -> None:
        """Called before step ``step``, from 0, of ``total``, ``per_epoch`` of them an epoch: sets ``now``."""
        self.now = {name: s.at(step, total=total, per_epoch=per_epoch) for name, s in self.schedules.items()}

    def after_step(self) -> None:
        """Called after every optimiser step: the place of an EMA update."""
