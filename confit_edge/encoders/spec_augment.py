"""SpecAugment (Park et al. 2019, arXiv 1904.08779): training silences stretches of time and bands of frequency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from confit_edge.torchaudio_pure import torchaudio

TIME_SHARE, BANDS_SHARE = 0.15, 0.2  # the largest share of a window, and of the bands, that one mask covers


class SpecAugment(nn.Module):
    """Masks one stretch of time and one range of bands of each log-mel `[batch, 1, frames, bands]`, only in training.

    `floor` is the value of silence. The masks come from torch's global generator, which the trainer seeds for each epoch.
    """

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor
        torchaudio()  # fails early if it is absent; not stored, as a module that holds it cannot be copied

    def forward(self, mel: Tensor) -> Tensor:
        if not self.training:
            return mel
        frames, bands = mel.shape[2], mel.shape[3]
        transforms, swapped = torchaudio().transforms, mel.transpose(2, 3)  # torchaudio has bands before time
        for mask in (
            transforms.TimeMasking(int(TIME_SHARE * frames), iid_masks=True),
            transforms.FrequencyMasking(int(BANDS_SHARE * bands), iid_masks=True),
        ):
            swapped = mask(swapped, mask_value=self.floor)
        return torch.clone(swapped.transpose(2, 3), memory_format=torch.contiguous_format)
