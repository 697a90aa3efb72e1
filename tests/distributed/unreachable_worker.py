"""Rank 1 never joins the all-reduce: rank 0's preflight has to end in time, with a clear error."""

import time

from accelerate import Accelerator

from errors import UserError
from run.startup import preflight

accelerator = Accelerator(cpu=True)
if accelerator.process_index == 1:
    time.sleep(12)
else:
    start = time.monotonic()
    try:
        preflight(accelerator, timeout_s=2.0)
    except UserError as error:
        print(f"after {time.monotonic() - start:.1f} s: {error}", flush=True)
