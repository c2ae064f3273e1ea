"""The wide residual network for inputs of 32 x 32.

Shapes, parameter names and initial draws of upstream file domainbed/lib/wide_resnet.py at b93c22a.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class Wide_ResNet(nn.Module):
    """Pre-activation residual blocks in three stages of growing width, then the mean over places.

    Args:
        input_shape: (channels, 32, 32).
        depth: number of layers; 6 n + 4 for n blocks a stage.
        widen_factor: the stages have 16, 32 and 64 times as many channels.
        dropout_rate: share of values dropped inside a block.

    Raises:
        ValueError: no number of blocks gives that depth.
    """

    def __init__(
        self, input_shape: Sequence[int], depth: int, widen_factor: int, dropout_rate: float
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide ResNet's depth is 6 n + 4 (10, 16, 22, ...), not {depth}")
        widths = [16, *(width * widen_factor for width in (16, 32, 64))]
        self.conv1 = nn.Conv2d(input_shape[0], widths[0], kernel_size=3, padding=1)
        self.layer1 = _stage(widths[0], widths[1], blocks, dropout_rate, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, dropout_rate, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, dropout_rate, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3], momentum=0.9)
        self.n_outputs = widths[3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, n_outputs)."""
        stages = nn.Sequential(self.conv1, self.layer1, self.layer2, self.layer3, self.bn1)
        return functional.relu(stages(x)).mean(dim=(2, 3))


def _stage(
    inputs: int, outputs: int, blocks: int, dropout_rate: float, stride: int
) -> nn.Sequential:
    """Return `blocks` blocks; the first widens and takes every `stride`-th place."""
    first = _Block(inputs, outputs, dropout_rate, stride)
    return nn.Sequential(
        first, *(_Block(outputs, outputs, dropout_rate, 1) for _ in range(blocks - 1))
    )


class _Block(nn.Module):
    """Two convolutions, each after normalisation and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, dropout_rate: float, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(dropout_rate)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, stride=stride, padding=1)
        same = stride == 1 and inputs == outputs
        adapting = [] if same else [nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride)]
        self.shortcut = nn.Sequential(*adapting)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.dropout(self.conv1(functional.relu(self.bn1(x))))
        inner = self.conv2(functional.relu(self.bn2(inner)))
        result: torch.Tensor = inner + self.shortcut(x)
        return result
