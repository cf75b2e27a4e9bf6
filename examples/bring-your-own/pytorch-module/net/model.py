"""A PyTorch module. train.py imports `Net` from here, so that there is one definition of it."""

from pathlib import Path

import numpy as np
import torch
from torch import nn


class Net(nn.Sequential):
    """Images [n, 1, 8, 8] with values from 0 to 16 -> scores [n, 10]."""

    def __init__(self, channels: int) -> None:
        convolution = nn.Conv2d(1, channels, 3, padding=1)
        super().__init__(convolution, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(channels * 16, 10))


class Model:
    def load(self, path: str) -> None:
        torch.set_grad_enabled(False)  # one thread makes all calls, so this holds for them
        torch.set_num_threads(1)
        self._net = Net(channels=32).eval()
        self._net.load_state_dict(torch.load(Path(path) / "weights.pt", weights_only=True))

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"scores": self._net(torch.from_numpy(inputs["image"])).numpy()}
