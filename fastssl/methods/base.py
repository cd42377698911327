"""What a training loop may ask of a method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data.lab import from_rgb, without_colour
from fastssl.data.media import Modality
from fastssl.data.plans import IMAGENET_MEAN, IMAGENET_STD, ViewPlan
from fastssl.models import maps
from fastssl.models.vit import VisionTransformer
from fastssl.schedule import Schedule

SHAPES = {"image": "(N, 3, H, W)", "video": "(N, T, 3, H, W)", "audio": "(N, samples)"}  # of a view
CANDIDATES = 256  # at most, among which a prediction is looked for by note_predictions


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
        multi_crop: whether ``forward`` takes any number of views from two on; the first two are the large ones.
        compared: name of the part whose output the loss compares, where a collapse shows before the features have it.
        collapse_causes: what probably went wrong when training has collapsed, by what has: "features", "one output"
            and "uniform output" of a teacher.
        Config: frozen dataclass of the method's own hyper-parameters; every field has a default and is documented.
        encoder: what is kept after pretraining; images (N, 3, H, W), or waveforms (N, samples), to features
            (N, feature_dim).
        watched: set by the training loop in steps whose signs of a collapse are logged: a method with a teacher then
            notes what it says (:meth:`note_teacher`).
        now: the current values of ``schedules`` by name, as the training loop has set them; at first their starts.
    """

    modality: ClassVar[Modality] = "image"
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    sees: ClassVar[Literal["rgb", "grey"]] = "rgb"
    multi_crop: ClassVar[bool] = False
    compared: ClassVar[str | None] = None
    collapse_causes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"features": "the learning rate is too high: lower --optim.lr or raise --optim.warmup_epochs"}
    )
    Config: ClassVar[type[Any]]
    encoder: nn.Module
    watched: bool = False

    def __init__(self, encoder: nn.Module, config: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.now = {name: schedule.start for name, schedule in self.schedules.items()}
        self._noted: dict[str, Tensor | float] = {}
        self._takes = _views_taken(type(self))
        self.register_forward_pre_hook(_check_views)

    @property
    def kept(self) -> nn.Module:
        """What is evaluated and exported: the encoder, or the average of its weights that a teacher is."""
        return self.encoder

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Those of the settings that change while training, by name."""
        settings = {item.name: getattr(self.config, item.name) for item in fields(self.config)}
        return {name: value for name, value in settings.items() if isinstance(value, Schedule)}

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

    def features(self, views: list[Tensor]) -> Tensor:
        """The encoder's (V N, feature_dim) of V views (N, 3, H, W), one after the other; those of a size in one pass.

        So batch norm sees all views of a size that follow one another at once, as multi-crop training has it (SwAV,
        arXiv:2006.09882, section 3.2).
        """
        sizes = groupby(views, key=lambda view: view.shape[2:])
        return torch.cat([self.encoder(torch.cat(list(crops))) for _, crops in sizes])

    def note_teacher(self, told: Tensor, loss: Tensor) -> None:
        """Notes signs of a collapse in what a teacher says, in nats (DINO, arXiv:2104.14294, section 5.3).

        ``teacher_entropy`` of what it says of an image, on average; ``teacher_kl``, the divergence of the student from
        that; ``teacher_information``, the entropy of the average less the average entropy, which is 0 if it says the
        same of all images, be it always one prototype or always all alike.

        Args:
            told: (..., K) probabilities.
            loss: the mean cross-entropy of the student to the teacher, a scalar.
        """
        entropy = torch.special.entr(told).sum(-1).mean()
        of_mean = torch.special.entr(told.flatten(0, -2).mean(0)).sum()
        self.note(teacher_entropy=entropy, teacher_kl=loss - entropy, teacher_information=of_mean - entropy)

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

    def note_predictions(self, predictions: Sequence[Tensor], targets: Sequence[Tensor], loss: Tensor) -> None:
        """Notes how well what is to come was predicted (CPC, arXiv:1807.03748, section 2.3).

        ``mutual_information_bound``, nats that prediction and target tell of each other at least: log N, the mean over
        the steps, less the loss; ``pretext_accuracy``, the share of predictions of the first step that score their own
        target above those of CANDIDATES of them, or of all if they are fewer; ``chance``, what guessing gives.

        Args:
            predictions, targets: of each step (N, D), alike in order.
            loss: the mean InfoNCE over the steps, a scalar.
        """
        bound = sum(math.log(len(rows)) for rows in targets) / len(targets) - loss
        apart = -(-len(targets[0]) // CANDIDATES)  # so that they are of many samples
        some, own = (rows[0].detach()[::apart].float() for rows in (predictions, targets))
        right = (some @ own.T).argmax(1) == torch.arange(len(own), device=own.device)
        self.note(mutual_information_bound=bound, pretext_accuracy=right.float().mean(), chance=1 / len(own))

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
        return maps(self.kept, without_colour(views) if self.sees == "grey" else views)

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """What the method makes of ``views``, for the report: pictures by name, each (N, 3, H, W) like the views.

        Called in evaluation mode, without gradients; by default there are none.
        """
        return {}

    @torch.no_grad()
    def class_attention_pictures(self, images: Tensor) -> dict[str, Tensor]:
        """For :meth:`pictures`, of a Vision Transformer: where the class token of what is kept looks in the last block.

        A map a head, its largest value white (DINO, arXiv:2104.14294, figure 1); of another encoder nothing.
        """
        if not isinstance(self.kept, VisionTransformer):
            return {}
        maps = self.kept.class_attention(images)
        maps = F.interpolate(maps / maps.amax(dim=(2, 3), keepdim=True), size=images.shape[2:], mode="nearest")
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        heads = {f"head {i}": (maps[:, i - 1 : i] - mean) / std for i in range(1, maps.shape[1] + 1)}
        return {"image": images, **heads}

    def before_step(self, step: int, *, total: int, per_epoch: int) -> None:
        """Called before step ``step``, from 0, of ``total``, ``per_epoch`` of them an epoch: sets ``now``."""
        self._noted = {}
        self.now = {name: s.at(step, total=total, per_epoch=per_epoch) for name, s in self.schedules.items()}

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step with the share of training done, in [0, 1]: the place of an EMA update."""


def _check_views(method: nn.Module, given: tuple[list[Tensor]]) -> None:
    """Before ``forward``: as many views as the method takes, each of its shape and of floating-point numbers.

    Raises:
        ValueError, TypeError: naming what was received.
    """
    assert isinstance(method, Method)
    (views,), name, shape = given, type(method).__name__, SHAPES[method.modality]
    for view in views:
        if view.ndim != 1 + shape.count(","):
            raise ValueError(f"{name}: views must be {shape}; got {tuple(view.shape)}")
        if not view.is_floating_point():
            raise TypeError(f"{name}: views must be floating-point, and images normalised; got {view.dtype}")
    if method.multi_crop:
        if len(views) < 2:
            raise ValueError(f"{name}: takes 2 views or more; got {len(views)}")
        return
    takes = method._takes
    if takes is not None and len(views) != takes:
        raise ValueError(f"{name}: takes {takes} view{'s' * (takes != 1)}; got {len(views)}")


def _views_taken(kind: type[Method]) -> int | None:
    """How many, at every size of images; None of what is used without a plan, which takes any number."""
    if kind.modality == "audio":
        return 1
    try:
        return kind.view_plan(224).total
    except NotImplementedError:
        return None
