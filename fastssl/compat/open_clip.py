"""open_clip's losses: ``from fastssl.compat.open_clip import ClipLoss``.

With several processes loss and gradient are exact whatever ``local_loss`` and ``gather_with_grad`` say: the mean of the
processes' losses is the loss of the whole batch, and so is the gradient that DistributedDataParallel averages.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastssl import losses


def _single(scale: float | Tensor) -> float | Tensor:
    """Some of open_clip's models have scales of shape (1)."""
    return scale.squeeze() if isinstance(scale, Tensor) else scale


class ClipLoss(nn.Module):
    """CLIP's loss of features that are unit rows already, as open_clip's models give them.

    ``cache_labels``, ``rank`` and ``use_horovod`` are taken and not needed.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("ClipLoss: processes are torch.distributed's; horovod is not supported")
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """image_features, text_features: (N, D). A bias, which moves all logits alike, changes nothing."""
        loss = losses.clip_loss(
            image_features,
            text_features,
            logit_scale=_single(logit_scale),
            normalized=True,
            group="world" if self.world_size > 1 else None,
        )
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """SigLIP's loss of features that are unit rows already; the texts of other processes come round a ring.

    ``cache_labels``, ``rank`` and ``dist_impl`` are taken and not needed: all of open_clip's ways give one result.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__()
        if dist_impl not in (None, "bidir", "shift", "reduce", "gather"):
            raise ValueError(f"SigLipLoss: dist_impl must be bidir, shift, reduce or gather; got {dist_impl!r}")
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.dist_impl = dist_impl or "bidir"

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """image_features, text_features: (N, D)."""
        loss = losses.siglip_loss(
            image_features,
            text_features,
            logit_scale=_single(logit_scale),
            logit_bias=0.0 if logit_bias is None else _single(logit_bias),
            normalized=True,
            group="world" if self.world_size > 1 else None,
            strategy="gather" if self.dist_impl == "gather" else "ring",
        )
        return {"contrastive_loss": loss} if output_dict else loss
