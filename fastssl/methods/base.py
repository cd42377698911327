"""What a training loop may ask of a method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data.lab import from_rgb, without_colour
from fastssl.data.media import Modality
from fastssl.data.plans import ViewPlan
from fastssl.models import maps


class Method(nn.Module):
    """A self-supervised method: an encoder, whatever networks it is trained with, and a loss on views of images.

    A subclass adds its networks in ``__init__``, says by :meth:`view_plan` which views it wants and computes its loss
    in ``forward``. It is written for one process and any device.

    Attributes:
        modality: what it is trained on. "image": views are (N, 3, H, W). "video": clips, so that views are
            (N, T, 3, H, W), each with one set of parameters for all its frames. "audio": windows of waveforms, one
            tensor (N, samples) in [-1, 1], and no view plan. ``media`` of a run's config says which clips and windows.
        recipe: settings of a run in which the method's differ from those of other methods, by their names in a config
            file: ``{"encoder": "vit_micro", "optim": {"name": "adamw"}}``.
        sees: "rgb", or "grey", where a hook of the encoder shows it all images without their colours: whoever uses it
            without that hook, as an exported file, has to do so.
        Config: frozen dataclass of the method's own hyper-parameters; every field has a default and is documented.
        encoder: what is kept after pretraining; images (N, 3, H, W) to features (N, feature_dim).
    """

    modality: ClassVar[Modality] = "image"
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    sees: ClassVar[Literal["rgb", "grey"]] = "rgb"
    Config: ClassVar[type[Any]]
    encoder: nn.Module

    def __init__(self, encoder: nn.Module, config: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self._noted: dict[str, Tensor | float] = {}

    @classmethod
    def build(cls, encoder: nn.Module, config: Any, size: int) -> Method:
        """The method for views of ``size`` x ``size`` pixels: for overriding, where networks of it depend on that."""
        return cls(encoder, config)

    @classmethod
    def view_plan(cls, size: int) -> ViewPlan:
        """The views of ``size`` x ``size`` pixels that :meth:`forward` takes."""
        raise NotImplementedError

    @classmethod
    def check_plan(cls, plan: ViewPlan) -> None:
        """Refuses a plan of as many views as that of :meth:`view_plan` of which nothing can be learnt; by default none.

        Raises:
            UserError: saying what is wrong with it.
        """

    def prepare(self, batches: Iterable[list[Tensor]]) -> None:
        """Called once, before the first step of a run, in training mode: the place to look at the images as a whole.

        What it finds goes into buffers, for a resumed run does not look again.

        Args:
            batches: views of all training images, as those of the first epoch; none are made that are not asked for.
        Raises:
            UserError: if the method can learn nothing from them.
        """

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

    def embed(self, frames: Tensor) -> Tensor:
        """What each position of an image looks like, to track it by: the encoder's last map, if a method has no other.

        Args:
            frames: (N, 3, H, W) floating-point, RGB in [0, 1].
        Returns:
            (N, D, h, w) floating-point.
        Raises:
            UserError: if the encoder gives no map.
        """
        views = from_rgb(frames)
        return maps(self.encoder, without_colour(views) if self.sees == "grey" else views)

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """What the method makes of ``views``, for the report: pictures by name, each (N, 3, H, W) like the views.

        Called in evaluation mode, without gradients; by default there are none.
        """
        return {}

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step with the share of training done, in [0, 1]: the place of an EMA update."""
