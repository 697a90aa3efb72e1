"""A process that loads exports with transformers alone, in an empty folder, without this repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

SCRIPT = """
import json, sys
import torch, transformers
from pathlib import Path
from safetensors.torch import load_file, save_file

for line in sys.stdin:
    ask = json.loads(line)
    try:
        config = json.loads((Path(ask["export"]) / "config.json").read_text())
        own = [name for name in config.get("auto_map", {}) if name != "AutoConfig"]
        assert bool(own) == ask["trusted"], own
        kind = getattr(transformers, own[0] if own else config["architectures"][0])
        model = kind.from_pretrained(ask["export"], trust_remote_code=ask["trusted"]).eval()
        with torch.no_grad():
            outputs = model(**load_file(ask["inputs"]))
        tensors = {n: v.clone().contiguous() for n, v in outputs.items() if torch.is_tensor(v)}
        save_file(tensors, ask["outputs"])
        answer = ""
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print("ANSWER", json.dumps(answer), flush=True)
"""


class Elsewhere:
    """Answers what an exported model gives for an input."""

    def __init__(self, folder: Path):
        self.folder = folder
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def outputs(self, export: Path, inputs: dict, trusted: bool = False) -> dict:
        """The model's output tensors.

        Args:
            trusted: the code in the export may run.
        """
        save_file(inputs, self.folder / "inputs.safetensors")
        ask = {
            "export": str(export),
            "trusted": trusted,
            "inputs": str(self.folder / "inputs.safetensors"),
            "outputs": str(self.folder / "outputs.safetensors"),
        }
        self._process.stdin.write(json.dumps(ask) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                answer = json.loads(line.removeprefix("ANSWER "))
                assert not answer, answer
                return load_file(self.folder / "outputs.safetensors")
        raise AssertionError("the process has ended")

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
