"""Pictures of what speaks for the class that the model names."""

import numpy as np
import torch
from torch import nn

from braintumor.batches import Batches
from braintumor.layers import choose_layer, first_images, layer_outputs
from braintumor.plots import overlay
from braintumor.saliency import enlarge, gradcam
from braintumor.weights import Description

BATCH = 64


def draw_overlays(
    model: nn.Module, described: Description, squares: np.ndarray, labels: list[str]
) -> list[np.ndarray]:
    """Draw each image as the network was given it, and beside it the same under its Grad-CAM.

    Parameters
    ----------
    model : nn.Module
    described : Description
        Of the network.
    squares : ndarray of shape (n, size, size), uint8
    labels : list of str
        The class of each image to explain.

    Returns
    -------
    list of n ndarray of shape (size, 2 * size, 3), uint8
    """
    numbers = np.array([described.classes.index(label) for label in labels])
    rows, cpu = np.arange(len(squares)), torch.device("cpu")
    batches = Batches(squares, rows, numbers, BATCH, described.mean, described.deviation, cpu)
    first = first_images(batches)[:1]
    maps = gradcam(model, choose_layer(layer_outputs(model, first), "auto"), batches)
    pictures = []
    heats = np.rint(enlarge(maps, squares.shape[1]) * 255).astype(np.uint8)
    for square, heat in zip(squares, heats, strict=True):
        pictures.append(np.hstack([np.repeat(square[:, :, None], 3, axis=2), overlay(square, heat)]))
    return pictures
