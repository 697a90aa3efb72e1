"""A real SLURM cluster of virtual nodes on this machine, for tests.

    with Cluster(nodes=2) as cluster:
        job = cluster.submit(["--nodes", "2", "--wrap", "srun hostname"])
        print(cluster.wait(job, 60)["JobState"], cluster.output(job))

The daemons run in namespaces of their own. Their process ids are, so that the end of the first
process is the end of all of them and of every job, also of what SLURM has lost sight of. Their host
names are: each node has a name and an address that resolve as on a cluster of machines.
"""

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "unshare", "setpriv")
NAMESPACES = ("unshare", "--pid", "--uts", "--mount", "--fork", "--kill-child", "--mount-proc")
START_TIMEOUT_S = 60.0
GPU_FILES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""SLURM counts device files and does not open them"""


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return (
            f"SLURM is not installed: no {', '.join(absent)} (slurmd slurmctld slurm-client munge)"
        )
    if os.geteuid() != 0:
        return "a SLURM cluster needs root"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        return "a SLURM cluster needs to make namespaces (CAP_SYS_ADMIN)"
    return None


class Cluster:
    """A cluster that runs while the context is entered.

    Args:
        cpus, gpus: what each node claims to have; the GPUs do not exist.
    """

    def __init__(self, nodes: int = 2, cpus: int = 4, gpus: int = 0):
        self.names = [f"node{number}" for number in range(1, nodes + 1)]
        self.cpus, self.gpus = cpus, gpus

    def __enter__(self) -> "Cluster":
        # Not pytest's folder: a socket's path has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)  # munge wants to be reachable
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "PATH": PATH,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }
        self._write_files()
        # The death of this process, even by SIGKILL, ends the namespace.
        command = ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "bash", self.folder / "start.sh"]
        with (self.folder / "start.log").open("w") as log:
            self._init = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )
        try:
            self._wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._init.kill()
        self._init.wait()
        # The kernel ends the namespace's processes one after the other; some may hold files open.
        until(lambda: not self.processes(), 30, "the end of the cluster's processes")
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *arguments: object) -> str:
        """Output of a client command, `scontrol` for instance.

        Raises:
            RuntimeError: with its error output, if it fails.
        """
        result = subprocess.run(
            [str(a) for a in arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if result.returncode:
            raise RuntimeError(f"{shlex.join(map(str, arguments))}: {result.stderr.strip()}")
        return result.stdout.strip()

    def submit(
        self,
        arguments: Sequence[object],
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Id of a new job; `arguments` are sbatch's."""
        result = subprocess.run(
            ["sbatch", "--parsable", "--output", self.folder / "%j.out", *map(str, arguments)],
            cwd=cwd,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if result.returncode:
            raise RuntimeError(f"sbatch: {result.stderr.strip()}")
        return result.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`: JobState, Restarts, ExitCode and others."""
        fields = self.command("scontrol", "show", "job", "--oneliner", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def output(self, job: str) -> str:
        """What the job has printed so far, in all its lives."""
        file = self.folder / f"{job}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def until(self, job: str, condition: Callable[[], object], timeout_s: float, what: str) -> None:
        """Wait for `condition` while the job lives.

        Raises:
            AssertionError: with the job's output, if that takes longer or the job ends before.
        """

        def ended_or_true() -> object:
            return condition() or self.job(job)["JobState"] in ENDED

        try:
            until(ended_or_true, timeout_s, what)
            assert condition(), f"the job ended before {what}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.job(job)}\n{self.output(job)}") from None

    def wait(self, job: str, timeout_s: float) -> dict[str, str]:
        """The fields of the job when it has ended for good; requeueing is not an end.

        Raises:
            AssertionError: with the job's output, if that takes longer.
        """
        self.until(job, lambda: self.job(job)["JobState"] in ENDED, timeout_s, "the job's end")
        return self.job(job)

    def processes(self, job: str | None = None) -> list[psutil.Process]:
        """Processes of this cluster, or of one of its jobs."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:  # gone, or of the kernel
                continue
            here = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            if here and job in (None, environment.get("SLURM_JOB_ID")):
                found.append(process)
        return found

    def _write_files(self) -> None:
        for name in ("state", *(f"spool-{name}" for name in self.names)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        addresses = {name: f"127.0.1.{number}" for number, name in enumerate(self.names, start=1)}
        hosts = ["127.0.0.1 localhost head", *(f"{a} {name}" for name, a in addresses.items())]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        (self.folder / "slurm.conf").write_text(self._configuration(addresses))
        files = (f"Name=gpu File={file}" for file in GPU_FILES[: self.gpus])
        (self.folder / "gres.conf").write_text("\n".join(files) + "\n")
        (self.folder / "start.sh").write_text(self._start_script())

    def _configuration(self, addresses: Mapping[str, str]) -> str:
        port, *ports = _free_ports(1 + len(self.names))
        gpus = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        nodes = [
            f"NodeName={name} NodeAddr={addresses[name]} Port={node_port} CPUs={self.cpus} "
            f"RealMemory=8000{gpus} State=UNKNOWN"
            for name, node_port in zip(self.names, ports, strict=True)
        ]
        lines = [
            "ClusterName=test",
            "SlurmctldHost=head(127.0.0.1)",
            f"SlurmctldPort={port}",
            "SlurmUser=root",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            # cred_expire is also how long a requeued job waits
            f"AuthInfo=socket={self.folder}/munge.socket,cred_expire=5",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool-%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/slurmd-%n.pid",
            f"SlurmctldLogFile={self.folder}/slurmctld.log",
            f"SlurmdLogFile={self.folder}/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc",  # no cgroups
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SlurmdParameters=config_overrides",  # believe the lines below, not the hardware
            "SchedulerParameters=sched_interval=2,batch_sched_delay=0",
            "PropagateResourceLimits=NONE",
            "ReturnToService=2",
            "MinJobAge=3600",  # a test asks for a job after its end
            f"FirstJobId={port}",  # jobs make ports of their id: others than of another cluster
            *(["GresTypes=gpu"] if self.gpus else []),
            *nodes,
            f"PartitionName=main Nodes={','.join(self.names)} Default=YES State=UP",
        ]
        return "\n".join(lines) + "\n"

    def _start_script(self) -> str:
        folder = self.folder
        munged = (
            f"munged --foreground --force --key-file={folder}/munge.key "
            f"--socket={folder}/munge.socket --pid-file={folder}/munged.pid "
            f"--log-file={folder}/munged.log --seed-file={folder}/munged.seed"
        )
        lines = [
            f"mount --bind {folder}/hosts /etc/hosts",
            "hostname head",
            f"{munged} &",
            f"until test -S {folder}/munge.socket; do sleep 0.05; done",
            "slurmctld -D -c &",
            *(f"unshare --uts sh -c 'hostname {n}; exec slurmd -D -N {n}' &" for n in self.names),
            "wait",
        ]
        return "\n".join(["set -e", *lines]) + "\n"

    def _wait_for_nodes(self) -> None:
        def all_idle() -> bool:
            assert self._init.poll() is None, f"the cluster ended at its start\n{self._logs()}"
            try:
                states = self.command("sinfo", "--noheader", "--Node", "--format", "%t").split()
            except (RuntimeError, subprocess.TimeoutExpired):  # not there yet
                return False
            return states == ["idle"] * len(self.names)

        try:
            until(all_idle, START_TIMEOUT_S, "the start of the cluster")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._logs()}") from None

    def _logs(self) -> str:
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{f.name}:\n{f.read_text(errors='replace')[-2000:]}" for f in files)


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE")
"""JobState of a job that will not run again"""


def until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait for `condition`.

    Raises:
        AssertionError: naming `what`, if that takes longer than `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} took longer than {timeout_s:.0f} s"
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
