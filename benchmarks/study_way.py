"""Training as the 2024 study describes it, to time ours against: written from the description, for benchmarks alone.

One .npy file an image, scaled by its own minimum and maximum, turned and scaled at random by itself as the loader asks
for it; float32 in the order batch, channel, row, column; Adam; the loss read after every step. The network is ours
with the same weights, so that nothing but the way differs.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

RATE = 1e-4
BATCH = {"resnet_simple": 64, "resnet_18": 15, "sis_autoencoder2": 32}


class ImageFiles(Dataset):
    """A folder of .npy files with their labels; `moved` turns and scales each image, as a random affine map does."""

    def __init__(self, folder, labels, *, moved=True):
        self._paths = [folder / f"{i}.npy" for i in range(len(labels))]
        self._labels, self._moved = labels, moved

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, i):
        image = torch.from_numpy(np.load(self._paths[i])).float()
        image = (image - image.min()) / (image.max() - image.min())
        return (affine(image) if self._moved else image), self._labels[i]


def affine(image):
    """Turn by an angle in (-180, 180) degrees and scale by 0.8 to 1.2, nearest pixel, zeros outside."""
    turn = math.pi * (2 * torch.rand(()) - 1)
    shrink = 1 / (0.8 + 0.4 * torch.rand(()))
    cos, sin, zero = shrink * torch.cos(turn), shrink * torch.sin(turn), torch.zeros(())
    matrix = torch.stack([torch.stack([cos, -sin, zero]), torch.stack([sin, cos, zero])])
    grid = F.affine_grid(matrix[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, mode="nearest", align_corners=False)[0]


def write_files(store, folder):
    """Write the images of a store as files and return the labels."""
    folder.mkdir(parents=True)
    for i in range(len(store)):
        np.save(folder / f"{i}.npy", store.images([i])[0])
    return [int(label) for label in store.labels]


class StudyTraining:
    """Steps of training, one after the other over the files."""

    def __init__(self, network, dataset, batch_size, *, order=None):
        self._network = network.to(memory_format=torch.contiguous_format)
        self._optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
        self._loader = DataLoader(dataset, batch_size=batch_size, shuffle=order is None, sampler=order, drop_last=True)
        self._batches = iter(self._loader)

    def steps(self, n):
        """Train n steps and return their losses."""
        self._network.train()
        losses = []
        for _ in range(n):
            images, labels = self._next()
            self._optimiser.zero_grad()
            loss = F.cross_entropy(self._network(images), labels)
            loss.backward()
            self._optimiser.step()
            losses.append(loss.item())
        return losses

    def _next(self):
        try:
            return next(self._batches)
        except StopIteration:
            self._batches = iter(self._loader)
            return next(self._batches)
