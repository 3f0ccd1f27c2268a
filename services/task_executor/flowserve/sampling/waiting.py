"""Who asks a device for a value waits until it has done all it was given; a CPU already has."""

import torch


def is_free_to_ask(tensor: torch.Tensor) -> bool:
    """May the host branch on its values, so as to leave work out, and wait for nobody?"""
    return tensor.device.type == "cpu"
