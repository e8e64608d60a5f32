"""A training step on a GPU as one CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor


class GraphedStep:
    """A step that one launch starts, in place of the hundreds that a small network keeps a GPU waiting with.

    Recorded as torch's documentation does it (CUDA graphs, whole-network capture): after a few steps to warm up,
    whose changes are undone.

    Parameters
    ----------
    step : callable
        Takes images and labels on the GPU, returns tensors; reads nothing from the GPU, and what changes from step
        to step, such as the learning rate, from tensors.
    images, target : Tensor
        Of the shapes and formats of all batches.
    tensors : callable
        Returns the tensors that a step changes; those that the first step makes start at 0.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        images: Tensor,
        target: Tensor,
        tensors: Callable[[], list[Tensor]],
    ) -> None:
        self.images, self.target = images.clone(), target.clone()
        before = {tensor.data_ptr(): tensor.clone() for tensor in tensors()}
        drawn = torch.cuda.get_rng_state(images.device)
        beside = torch.cuda.Stream(images.device)
        beside.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(beside):
            for _ in range(3):
                step(self.images, self.target)
        torch.cuda.current_stream(images.device).wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = step(self.images, self.target)
        torch.cuda.set_rng_state(drawn, images.device)
        for tensor in tensors():
            if tensor.data_ptr() in before:
                tensor.copy_(before[tensor.data_ptr()])
            else:
                tensor.zero_()

    def __call__(self, images: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Take the step on a batch."""
        self.images.copy_(images)
        self.target.copy_(target)
        self.graph.replay()
        return tuple(result.clone() for result in self.results)
