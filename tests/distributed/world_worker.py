"""How large accelerate's world is under torchrun, if it is not told to use the CPU."""

from accelerate import Accelerator

print(f"world of {Accelerator().num_processes}", flush=True)
