"""Where a network looks: Grad-CAM."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from captum.attr import LayerGradCam
from torch import Tensor, nn


def gradcam(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """Compute Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) at the last convolution.

    Parameters
    ----------
    model : nn.Module
    images : Tensor of shape (n, 1, size, size)
        Normalised.
    targets : Tensor of shape (n,), int
        The class to explain of each image.

    Returns
    -------
    ndarray of shape (n, size, size), float32, 0 to 1
        Each map scaled by its own largest value; 0 throughout where nothing speaks for the class.
    """
    layer = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1)][-1]
    model.eval()
    maps = LayerGradCam(model, layer).attribute(images, targets, relu_attributions=True).detach()
    maps = F.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo().tiny)).numpy()
