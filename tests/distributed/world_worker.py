"""How large accelerate's world is under torchrun, if it is not told to use the CPU."""

from accelerate import Accelerator

accelerator = Accelerator()
print(f"world of {accelerator.num_processes}", flush=True)
accelerator.state.destroy_process_group()
