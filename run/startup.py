"""Checks of the processes before anything expensive: are they all here, and all the same?"""

import hashlib
import json
import os
import re
import resource
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator

from disk import ROOT
from errors import UserError
from settings.keys import Config
from settings.walk import config_to_dict

SAY_EVERY_S = 30.0
ENOUGH_DESCRIPTORS = 65_536
UNDETERMINED = {
    "the backward pass of grid_sample (deformable attention)": (
        *("deformable_detr", "rt_detr_v2", "d_fine", "deimv2"),
        *("rf_detr", "rf_detr_seg", "mask2former"),
    ),
    "the running sums of its position embeddings": ("detr", "conditional_detr"),
}
"""What torch has no deterministic kernel for on a GPU, and the heads that need it"""
ROOMS = ("settings", "data", "model", "training", "evaluation", "report", "export", "run", "street")
"""Folders with the code of a run"""


def raise_descriptor_limit() -> None:
    """Let this process and its workers open as many files as the system allows, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_launch(cfg: Config, world: int, environment: Mapping[str, str]) -> None:
    """Compare what the launcher was asked for with what runs and what the configuration says.

    Raises:
        UserError: listing every contradiction.
    """
    problems = [*_check_world(cfg, world, environment), *_check_accelerate(cfg, environment)]
    if problems:
        raise UserError("\n  ".join(["the launcher contradicts the run:", *problems]))


def choose_deterministic_kernels() -> None:
    """Of this process, before it uses a GPU. What has none then raises an error; see `run.trouble.explain`."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    # Which finds faults, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_deterministic(head: str | None, device: torch.device) -> None:
    """Refuse run.deterministic for a head that cannot be so on this device.

    Raises:
        UserError: naming the head and what it needs.
    """
    for what, heads in UNDETERMINED.items():
        if head in heads and device.type != "cpu":
            raise UserError(
                f"run.deterministic true: {head} on {device.type} needs {what}, of which torch has no deterministic "
                "kernel; set it false, or take maskformer, pmd or linear, or a CPU"
            )


def preflight(accelerator: Accelerator, timeout_s: float) -> None:
    """Collective: called on every rank. One small all-reduce that must end in time.

    It begins when a process has imported what it needs, which takes some nodes longer than others, and NCCL
    makes its connections in it.

    Raises:
        UserError: if the processes do not reach each other.
    """
    if accelerator.num_processes == 1:
        return
    sums: list[float] = []
    failures: list[Exception] = []

    def add_up() -> None:
        try:
            if accelerator.device.type != "cpu":  # a new thread begins at the first device
                torch.accelerator.set_device_index(accelerator.device.index or 0)
            value = torch.ones(1, device=accelerator.device)
            dist.all_reduce(value)
            sums.append(value.item())
        except Exception as error:  # in a thread it would be lost
            failures.append(error)

    # In a thread, since NCCL connects inside the first call and does not return before it has.
    thread = threading.Thread(target=add_up, daemon=True)
    thread.start()
    start = time.monotonic()
    while thread.is_alive() and (left := start + timeout_s - time.monotonic()) > 0:
        thread.join(min(SAY_EVERY_S, left))
        if thread.is_alive() and accelerator.is_main_process:
            print(
                f"waiting until the {accelerator.num_processes} processes reach each other: "
                f"{time.monotonic() - start:.0f} of {timeout_s:.0f} s (run.preflight_timeout_s)",
                flush=True,
            )
    if sums != [accelerator.num_processes]:
        raise UserError(
            f"the {accelerator.num_processes} processes do not reach each other (an all-reduce gave "
            f"{failures or sums or 'nothing'} in {time.monotonic() - start:.0f} s); check the main address and port, firewalls, "
            "and NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; raise run.preflight_timeout_s where a node only "
            "starts slowly"
        )


def check_same(accelerator: Accelerator, facts: Mapping[str, str]) -> None:
    """Collective: called on every rank. Refuse ranks that differ in any of the named facts.

    Raises:
        UserError: naming the fact and the ranks that differ from rank 0.
    """
    if accelerator.num_processes == 1:
        return
    digests = [hashlib.sha256(text.encode()).digest() for text in facts.values()]
    own = torch.tensor([list(d) for d in digests], dtype=torch.uint8, device=accelerator.device)
    everyone = accelerator.gather(own[None])
    differs = (everyone != everyone[:1]).any(dim=2)
    problems = [
        f"{name} on rank(s) {', '.join(map(str, ranks))}"
        for place, name in enumerate(facts)
        if (ranks := differs[:, place].nonzero()[:, 0].tolist())
    ]
    if problems:
        raise UserError(
            f"ranks do not run the same training; other than on rank 0: {'; '.join(problems)}. "
            "Give all nodes the same command, code, packages and data"
        )


def rank_facts(cfg: Config, run_facts: Mapping[str, object]) -> dict[str, str]:
    """What has to be the same on all ranks, by name."""
    return {
        "the configuration": json.dumps(config_to_dict(cfg), sort_keys=True),
        "the dataset": str(run_facts["data_sha256"]),
        "the backbone": str(run_facts["backbone_sha256"]),
        "package versions": json.dumps(run_facts["versions"], sort_keys=True),
        "the code": code_digest(ROOT),
    }


def code_digest(root: Path) -> str:
    """sha256 over the Python files that a run uses."""
    digest = hashlib.sha256()
    files = [*root.glob("*.py"), *(f for room in ROOMS for f in (root / room).rglob("*.py"))]
    for file in sorted(files):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _check_world(cfg: Config, world: int, environment: Mapping[str, str]) -> Iterator[str]:
    gpus = _number(environment.get("SLURM_GPUS_ON_NODE", "0"))
    if gpus and not torch.cuda.is_available():
        yield (
            f"SLURM gave this node {gpus} GPU(s) and torch {torch.__version__} sees none; check "
            "nvidia-smi on the node and that torch was installed for CUDA"
        )
    started = _number(environment.get("WORLD_SIZE", "1"))
    if world < started:
        yield f"the launcher started {started} processes, but each sees a world of {world}"
    launched = any(name.startswith("ACCELERATE_") for name in environment)
    wanted = _processes_wanted() if launched else None
    if wanted is not None and world < wanted:
        yield (
            f"accelerate launch was asked for {wanted} processes and started {world}; on GPUs add "
            "--multi_gpu, on CPUs use torchrun --nproc_per_node"
        )
    if world == 1 and cfg.train.parallel == "fsdp2":
        yield (
            "train.parallel fsdp2 on one process, which has nobody to share weights with; start several, or set "
            "--train.parallel ddp, which goes on from the same checkpoints"
        )
    nodes = _number(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
    if "SLURM_PROCID" in environment and world < nodes:
        yield (
            f"SLURM gave {nodes} nodes and only {world} process(es) found each other; pass "
            "--num_machines, --machine_rank $SLURM_NODEID and --main_process_ip to the launcher"
        )


def _number(text: str) -> int:
    """The number at the end of a text (SLURM also writes h100:2); 0 if there is none."""
    digits = re.search(r"\d+$", text)
    return int(digits[0]) if digits else 0


def _check_accelerate(cfg: Config, environment: Mapping[str, str]) -> Iterator[str]:
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", cfg.train.precision):
        yield (
            f"accelerate's mixed_precision {precision}, train.precision {cfg.train.precision}: "
            "precision belongs into the configuration; drop it from the accelerate config"
        )
    accumulation = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation not in ("1", "auto"):
        yield (
            f"accelerate's gradient_accumulation_steps {accumulation}: accumulation follows from "
            "train.global_batch_size and train.micro_batch_size; drop it from the accelerate config"
        )
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        yield (
            f"accelerate's distributed_type FSDP, train.parallel {cfg.train.parallel}: what is cut belongs into the "
            "configuration; take accelerate_configs/fsdp2.yaml and --train.parallel fsdp2"
        )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        yield "accelerate's dynamo_backend: not supported; drop it from the accelerate config"


def _processes_wanted() -> int | None:
    """num_processes that an `accelerate launch` above this process was given.

    It starts one process without a word where it sees no GPUs (`--cpu --num_processes 2`), and
    leaves no trace of the number in the environment.
    """
    for ancestor in psutil.Process().parents():
        try:
            command = ancestor.cmdline()
        except psutil.Error:
            continue
        if "launch" in command and any("accelerate" in part for part in command[:3]):
            return _num_processes_of(command)
    return None


def _num_processes_of(command: list[str]) -> int | None:
    options = dict(zip(command, command[1:], strict=False))
    options |= dict(part.split("=", 1) for part in command if part.startswith("--") and "=" in part)
    number = options.get("--num_processes", options.get("--num-processes"))
    file = options.get("--config_file", options.get("--config-file"))
    if number is None and file is not None and os.path.isfile(file):
        number = (yaml.safe_load(Path(file).read_text()) or {}).get("num_processes")
    return int(number) if number is not None else None
