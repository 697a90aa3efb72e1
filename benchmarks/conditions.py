"""Under what figures were measured: command, versions, machine."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers")


def conditions() -> str:
    """One line of markdown for the top of a table."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    threads = f"{torch.get_num_threads()} thread(s)"
    return f"`{command()}`; {versions}; {processor()}, {os.cpu_count()} cores, {load}, {threads}"


def command() -> str:
    """This process's, without folders."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.orig_argv]
    return " ".join(words)


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo")
    found = lines.read_text().splitlines() if lines.exists() else []
    names = [line.split(":")[1].strip() for line in found if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
