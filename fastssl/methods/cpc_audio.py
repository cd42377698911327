"""CPC of recordings: predict the frames to come from what was heard, by telling them from others (arXiv:1807.03748).

Recipe:
    fastssl pretrain cpc_audio --data fsdd --media.samples 2560 --max_stride 80 --width 128 --optim.lr 1e-3
    Time and score: not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from fastssl.errors import UserError, require_at_least, require_positive
from fastssl.losses import CPCLoss
from fastssl.methods.base import Method
from fastssl.models.audio import WaveGRU
from fastssl.models.context import StepsAhead


@dataclass(frozen=True)
class CPCAudioConfig:
    """Hyper-parameters of contrastive predictive coding of recordings.

    Attributes:
        first_step: frames ahead of which the nearest that is predicted lies.
        last_step: frames ahead of which the farthest lies; 12 of 10 ms in the paper. A window has more.
        temperature: divides the scores, which are products as in the paper, not cosines.
    """

    first_step: int = 1
    last_step: int = 12
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_at_least("CPC", self, first_step=1)
        require_positive("CPC", self, "temperature")
        if self.last_step < self.first_step:
            raise UserError(
                f"cpc_audio predicts from first_step to last_step frames ahead; got {self.first_step} to "
                f"{self.last_step}"
            )


class CPCAudio(Method):
    """Contrastive predictive coding of raw waveforms (arXiv:1807.03748, section 3.1).

    From the frames down to its own each place predicts the one k frames ahead, and is to find it among those of the
    same windows and of all others. The contexts are kept with the frames: their mean over time is the feature vector.
    """

    Config = CPCAudioConfig
    encoder: WaveGRU
    modality = "audio"
    recipe = MappingProxyType(
        {"encoder": "wave_gru", "batch_size": 64, "optim": {"name": "adamw", "lr": 2e-4, "weight_decay": 0.01}}
    )

    def __init__(self, encoder: nn.Module, config: CPCAudioConfig) -> None:
        super().__init__(encoder, config)
        if not isinstance(encoder, WaveGRU):
            raise UserError(
                f"cpc_audio needs an encoder of waveforms, and a {type(encoder).__name__} is none: take wave_gru"
            )
        self.ahead = StepsAhead(encoder.feature_dim, encoder.width, config.first_step, config.last_step)
        self.loss = CPCLoss(config.temperature, normalized=True)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, samples) batch of windows in [-1, 1]. Returns the scalar loss."""
        (windows,) = views
        latents = self.encoder.latents(windows)
        predictions, targets = self.ahead(self.encoder.contexts(latents), latents)
        loss: Tensor = self.loss(predictions, targets)
        self.note_predictions(predictions, targets, loss)
        return loss
