"""Lives of a run, each in processes of its own that may be killed: `python worker.py` reads JSON lines.

Importing torch and transformers takes far longer than a tiny run. So one parent imports everything
and forks each life's ranks; what they do, and how they die, is real.
"""

import gc
import json
import os
import signal
import socket
import sys
import threading
import traceback

MOMENTS = {
    "decode": "data.feed.loader.decode",
    "step": "train_accelerate.take_step",
    "log": "train_accelerate.log_step",
    "evaluate": "evaluation.predictions._in_split",
    "metrics": "run.evaluate.measure",
    "report": "run.evaluate.begin_report",
    "write": "training.checkpoint.save_file",
    "manifest": "training.checkpoint.write_manifest",
    "flush": "disk.flush",
    "rename": "pathlib.Path.rename",
    "link": "training.checkpoint.point",
    "remove": "disk.shutil.rmtree",
}
"""Functions before or after a call of which a process can be killed"""


def arm(moment: str, call: int, after: bool, number: int) -> None:
    """Send this process signal `number` at the `call`-th call of a moment, or `call` ms from now."""
    if moment == "time":
        timer = threading.Timer(call / 1000, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
        return
    *owner_parts, name = MOMENTS[moment].split(".")
    owner = sys.modules[owner_parts[0]]
    for place, part in enumerate(owner_parts[1:], start=2):
        owner = sys.modules.get(".".join(owner_parts[:place])) or getattr(owner, part)
    original = getattr(owner, name)
    left = [call]

    def struck(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), number)
        result = original(*args, **kwargs)
        if left[0] == 0 and after:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, struck)


def rank_main(rank: int, life: dict, port: int) -> int:
    """One rank of a life; its exit status."""
    log = os.open(life["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if life["world"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(life["world"]),
            "LOCAL_WORLD_SIZE": str(life["world"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    import train_accelerate
    from errors import UserError

    for kill in life["signals"]:
        if kill["rank"] == rank:
            arm(kill["moment"], kill["call"], kill["after"], kill["signal"])
    try:
        return train_accelerate.main(life["arguments"])
    except UserError as error:
        print("error:", error, file=sys.stderr)
        return 2


def fork_rank(rank: int, life: dict, port: int) -> int:
    """The process id of a new rank."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = rank_main(rank, life, port)
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()  # as the interpreter does at its end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def live(life: dict) -> list[int]:
    """Run one life; exit statuses by rank, negative for a signal."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks = {fork_rank(rank, life, port): rank for rank in range(life["world"])}
    statuses = [0] * life["world"]
    while ranks:
        pid, status = os.wait()
        if pid not in ranks:
            continue
        statuses[ranks.pop(pid)] = os.waitstatus_to_exitcode(status)
        if os.waitstatus_to_exitcode(status) not in (0, 75):  # as a launcher does
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return statuses


def main() -> None:
    """Answer each life on stdin with its exit statuses on stdout."""
    import torch

    import train_accelerate  # noqa: F401
    from settings.load import build_parser

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may have been started by nohup
    torch.set_num_threads(1)
    build_parser("train_accelerate.py")  # kept, and shared by all lives
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(live(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
