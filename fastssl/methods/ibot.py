"""iBOT: DINO, and of hidden patches too, what the teacher, who sees them, says (Zhou et al., arXiv:2111.07832).

Recipe:
    fastssl pretrain ibot --data clipart
    fastssl pretrain ibot --config benchmarks/recipes/cifar10/ibot.yaml --data cifar10
        CIFAR-10 on two CPU cores: not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fastssl.errors import UserError, require_at_least
from fastssl.losses import DINOLoss
from fastssl.methods.dino import DINO, LARGE, DINOConfig
from fastssl.models.vit import VisionTransformer
from fastssl.ops import block_masking, take_patches
from fastssl.schedule import Schedule

LEAST_BLOCK = 4  # patches, as in the authors' code


@dataclass(frozen=True)
class IBOTConfig(DINOConfig):
    """Hyper-parameters of iBOT: DINO's, and those of the hidden patches.

    Attributes:
        prototypes: outputs that crops and patches are assigned to; the paper's 8192 are for ImageNet.
        hidden_dim: width of the head's hidden layers; null is four times that of the features, at most 2048.
        bottleneck_dim: length of what is compared with the prototypes.
        momentum: share of its own weights that the teacher keeps at a step.
        student_temp: divides the student's outputs.
        teacher_temp: divides the teacher's; lower is sharper, which keeps its output from becoming uniform.
        centering: what keeps one prototype from taking all: "center" subtracts the moving average of the teacher's
            outputs, one of the crops and one of the patches; "sinkhorn" assigns the batch to all prototypes alike.
        center_momentum: share of itself that a center keeps at a step.
        train_prototypes: 0 or 1, whether the last layer is trained; the paper keeps it as drawn in the first epoch.
        mask_ratio: share of a large crop's patches that are hidden, on average.
        mask_spread: by which that share varies from step to step, evenly up and down.
        masked_share: share of the images whose large crops have hidden patches; the others are as in DINO.
        patch_weight: weight of the patches' loss, beside the crops'.
    """

    mask_ratio: float = 0.3
    mask_spread: float = 0.2
    masked_share: float = 0.5
    patch_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("iBOT", self, mask_spread=0, patch_weight=0)
        Schedule(self.masked_share).require("masked_share of iBOT", 0, 1)
        for share in (self.mask_ratio - self.mask_spread, self.mask_ratio + self.mask_spread):
            if not 0 < share < 1:
                raise UserError(f"the mask_ratio of iBOT and its mask_spread must stay within (0, 1); got {share:.3g}")


class IBOT(DINO):
    """iBOT (arXiv:2111.07832, section 3): crops and patches share the head, as the best of its variants does (3.3)."""

    Config = IBOTConfig
    collapse_causes = MappingProxyType(
        {what: cause.replace("--dino", "--ibot") for what, cause in DINO.collapse_causes.items()}
    )
    encoder: VisionTransformer

    def __init__(self, encoder: nn.Module, config: IBOTConfig) -> None:
        if not isinstance(encoder, VisionTransformer):
            raise UserError(f"iBOT hides patches, which a {type(encoder).__name__} does not have: give it a vit_*")
        super().__init__(encoder, config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.feature_dim))
        self.patch_loss = DINOLoss(
            config.prototypes,
            student_temp=config.student_temp,
            centering=config.centering,
            center_momentum=config.center_momentum,
        )

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches of large crops, then small ones (N, 3, h, w). Returns the scalar loss.

        The sum of equation 1, of each hidden patch of the student's and the same patch, seen, of the teacher's, and
        equation 2's loss of class tokens, DINO's. For an equal number of hidden patches in both large crops the first
        images of the batch have them, and as many in each, drawn anew at each step.
        """
        large, small = torch.cat(views[:LARGE]), views[LARGE:]
        mask, ids = self._mask(large)
        frozen, temp = self.now["train_prototypes"] == 0, self.now["teacher_temp"]
        with torch.no_grad():
            encoder, head = self.teacher.module.children()
            assert isinstance(encoder, VisionTransformer)
            seen = encoder.tokens(large)
            teacher, teacher_patches = head(seen[:, 0]).unflatten(0, (LARGE, -1)), head(_hidden(seen, ids))
        hidden = self.encoder.tokens(large, masked=(mask, self.mask_token))
        tokens = [hidden[:, 0], *([self.encoder.tokens(torch.cat(small))[:, 0]] if small else [])]
        student = self.head(torch.cat(tokens), frozen=frozen).unflatten(0, (len(views), -1))
        patches = self.head(_hidden(hidden, ids), frozen=frozen)
        told = self.loss.told(teacher, teacher_temp=temp) if self.watched else None
        loss: Tensor = self.loss(student, teacher, teacher_temp=temp)
        if told is not None:
            self.note_teacher(told, loss)
        # DINO's loss compares each crop with the other: with the student's two exchanged, each with itself
        of_patches: Tensor = self.patch_loss(patches.flip(0), teacher_patches, teacher_temp=temp)
        weight: float = self.config.patch_weight
        return loss + weight * of_patches

    def _mask(self, large: Tensor) -> tuple[Tensor, Tensor]:
        """Which patches of (2 N, 3, H, W) large crops are hidden, in blocks, of the first M images of each N.

        Returns:
            (2 N, L) bool, and their places, (2 M, K) int64.
        """
        grid, count = self.encoder.grid(large), len(large) // LARGE
        length = grid[0] * grid[1]
        ratio = self.config.mask_ratio + self.config.mask_spread * (2 * float(torch.rand(())) - 1)
        masked, patches = max(1, round(self.config.masked_share * count)), max(1, round(ratio * length))
        least = min(LEAST_BLOCK, length)
        blocks = block_masking(LARGE * masked, grid, patches, min_block=least, device=large.device).flatten(1)
        ids = blocks.byte().argsort(dim=1, descending=True, stable=True)[:, :patches]
        mask = torch.zeros(LARGE, count, length, dtype=torch.bool, device=large.device)
        mask[:, :masked] = blocks.view(LARGE, masked, length)
        return mask.flatten(0, 1), ids


def _hidden(tokens: Tensor, ids: Tensor) -> Tensor:
    """Of (2 N, 1 + L, D) tokens those of patches ``ids`` (2 M, K) of the first M of each N: (2, M K, D)."""
    images, width = len(ids) // LARGE, tokens.shape[2]
    by_crop = tokens[:, 1:].reshape(LARGE, -1, tokens.shape[1] - 1, width)
    return take_patches(by_crop[:, :images].flatten(0, 1), ids).reshape(LARGE, -1, width)
