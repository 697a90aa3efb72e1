"""How often accelerate's prepared scheduler steps per optimizer step."""

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
accelerator.backward(model(torch.ones(1, 1)).sum())
optimizer.step()
schedule.step()
if accelerator.is_main_process:
    print(f"scheduler at {schedule.scheduler.last_epoch} after 1 step")
accelerator.state.destroy_process_group()
