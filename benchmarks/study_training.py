"""Training as the 2024 study describes it, as the peer of bench_train.py; written from the description.

One .npy file per image, scaled by its own minimum and maximum, rotated and scaled at random when the loader asks for
it; float32 in the order batch, channel, row, column; Adam; the loss is read after every step. The network is ours.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

LEARNING_RATE = 1e-4
BATCH_SIZE = {"resnet_simple": 64, "resnet_18": 15, "sis_autoencoder2": 32}


class ImageFiles(Dataset):
    """A folder of .npy files with labels; each image is rotated and scaled at random unless `augment` is false."""

    def __init__(self, folder, labels, *, augment=True):
        self._paths = [folder / f"{i}.npy" for i in range(len(labels))]
        self._labels, self._augment = labels, augment

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, i):
        image = torch.from_numpy(np.load(self._paths[i])).float()
        image = (image - image.min()) / (image.max() - image.min())
        return (random_affine(image) if self._augment else image), self._labels[i]


def random_affine(image):
    """Rotate by an angle in (-180, 180) degrees and scale by 0.8 to 1.2, nearest pixel, zeros outside."""
    angle = math.pi * (2 * torch.rand(()) - 1)
    shrink = 1 / (0.8 + 0.4 * torch.rand(()))
    cos, sin, zero = shrink * torch.cos(angle), shrink * torch.sin(angle), torch.zeros(())
    matrix = torch.stack([torch.stack([cos, -sin, zero]), torch.stack([sin, cos, zero])])
    grid = F.affine_grid(matrix[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, mode="nearest", align_corners=False)[0]


def write_files(store, folder):
    """Write the images of a store as files."""
    folder.mkdir(parents=True)
    for i in range(len(store)):
        np.save(folder / f"{i}.npy", store.images([i])[0])


class StudyTraining:
    """Steps of training over shuffled files."""

    def __init__(self, network, dataset, batch_size):
        self._network = network.to(memory_format=torch.contiguous_format).train()
        self._optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        self._loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
        self._batches = iter(self._loader)

    def step(self):
        """Train one step and return its loss."""
        try:
            images, labels = next(self._batches)
        except StopIteration:
            self._batches = iter(self._loader)
            images, labels = next(self._batches)
        self._optimiser.zero_grad()
        loss = F.cross_entropy(self._network(images), labels)
        loss.backward()
        self._optimiser.step()
        return loss.item()
