"""What has to be said differently to a device than to the CPU: copies that are not waited for, and their end."""

import torch


def pins(device: torch.device) -> bool:
    """Whether memory of the host can be pinned for this device, so that no copy to or from it has to be waited for."""
    return device.type not in ("cpu", "mps")


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device; neither waits for the other.

    The pinned copy may be let go at once: torch gives its memory to nobody before the device has read it.
    """
    if pins(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def compute_in_fp32() -> None:
    """Let fp32 be fp32: on NVIDIA GPUs cuDNN's convolutions round their inputs to TF32 (10 bits of 23) unless they are
    told not to; matrix products do not by default."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def wait_for(device: torch.device) -> None:
    """Return when everything that the device was asked for is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
