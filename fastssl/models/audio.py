"""Encoders of raw waveforms: strided convolutions, and a recurrent network over their frames (arXiv:1807.03748)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Kernel and stride of each convolution (section 3.1): frames of 160 samples in all, 10 ms of 16 kHz.
_CONVOLUTIONS = ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2))


class WaveGRU(nn.Module):
    """The encoder and the context network of CPC on speech (arXiv:1807.03748, section 3.1).

    Each frame is normalised over its channels, not over time: what comes later must not be told to what was before.

    Args:
        width: channels of the frames; 512 is the published network. The GRU has half as many.
        max_stride: samples that a frame stands for, at most; a convolution that would make it more keeps the rate it
            gets. 160 is the published network; 80 gives 10 ms at 8 kHz.

    Attributes:
        feature_dim: length of a feature vector, ``width // 2``.
        width: length of a latent.
        least: samples that give a frame.

    Raises:
        ValueError: for a width below 2, or a max_stride below 1.
    """

    def __init__(self, *, width: int = 512, max_stride: int = 160) -> None:
        super().__init__()
        if width < 2 or max_stride < 1:
            raise ValueError(f"width must be at least 2 and max_stride at least 1; got {width} and {max_stride}")
        self.width, self.feature_dim, self.least = width, width // 2, min(160, max_stride)
        convolutions = []
        channels, total = 1, 1
        for kernel, step in _CONVOLUTIONS:
            kernel, step = (kernel, step) if total * step <= max_stride else (3, 1)
            total *= step
            # no bias, so that a quiet recording gives what a loud one does
            conv = nn.Conv1d(channels, width, kernel, step, padding=(kernel - step + 1) // 2, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            convolutions.append(conv)
            channels = width
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in convolutions)
        self.gru = nn.GRU(width, self.feature_dim, batch_first=True)

    def latents(self, x: Tensor) -> Tensor:
        """x: (N, samples) floating-point waveforms in [-1, 1]. Returns z, (N, T, width), T a 160th of the samples.

        Or what ``max_stride`` allows.

        Raises:
            ValueError, TypeError: naming the shape or dtype received, if it is another or has too few samples.
        """
        if x.ndim != 2:
            raise ValueError(f"wave_gru: waveforms must be (N, samples); got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"wave_gru: waveforms must be floating-point; got {x.dtype}")
        if x.shape[1] < self.least:
            raise ValueError(f"wave_gru: waveforms must have at least {self.least} samples; got {tuple(x.shape)}")
        x = x[:, None]
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(conv(x).transpose(1, 2))).transpose(1, 2)
        return x.transpose(1, 2)

    def contexts(self, latents: Tensor) -> Tensor:
        """latents: (N, T, width). Returns c, (N, T, feature_dim): of each frame and those before."""
        found: Tensor = self.gru(latents)[0]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, samples), as for :meth:`latents`. Returns (N, feature_dim), the contexts averaged over time."""
        return self.contexts(self.latents(x)).mean(dim=1)


ENCODERS = {"wave_gru": WaveGRU}
