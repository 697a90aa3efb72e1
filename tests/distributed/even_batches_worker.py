"""How many of 5 samples a plain gather over a prepared loader returns on 2 ranks."""

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
loader = accelerator.prepare(torch.utils.data.DataLoader(list(range(5)), batch_size=1))
gathered = torch.cat([accelerator.gather(batch) for batch in loader])
if accelerator.is_main_process:
    print(f"gathered {len(gathered)} of 5")
accelerator.state.destroy_process_group()
