"""Writing so that a kill or a full disk never leaves half a file or folder under its name.

What is being written stands beside its place under another name, and is renamed when it is whole.
"""

import contextlib
import ctypes
import errno
import fcntl
import multiprocessing
import os
import secrets
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from errors import UserError, process_rank

ROOT = Path(__file__).resolve().parent
"""The repository"""
SILENT_WAIT_S = 5.0
"""After which it is said that another process is waited for"""
WRITING, REPLACED, REMOVING = ".writing-", ".replaced-", ".removing-"
"""What the names of unfinished things begin with"""
PR_SET_PDEATHSIG = 1
"""Number of the option in Linux's prctl.h"""


def cache_root() -> Path:
    """Folder of everything that is kept from one run to the next.

    Raises:
        UserError: if the environment names none.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "permafrost"
    except RuntimeError as error:
        raise UserError(f"there is no place for a cache ({error}); set XDG_CACHE_HOME") from error


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file, or leave the one that is there as it is.

    Raises:
        OSError: if it cannot be written.
    """
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"  # containers share process ids
    temporary = file.with_name(f"{WRITING}{file.name}-{unique}")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_unwritable(option: str, place: Path | None, folder: bool = False) -> None:
    """Told before the work whose result is to be written there. Nothing is left behind.

    Args:
        option: by which it was given. place: None if it was not. folder: whether it is to be a folder, not a file.

    Raises:
        UserError: if there is no room for it, or it is of the other kind.
    """
    if place is None:
        return
    try:
        if place.exists() and place.is_dir() != folder:
            raise UserError(
                f"{option} {place}: is a {'file' if folder else 'folder'}; name another one"
            )
        if place.is_file() and not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        around = place if place.is_dir() else place.absolute().parent
        while not around.exists():
            around = around.parent
        with tempfile.TemporaryFile(dir=around):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {place}: cannot be written: {error.strerror}; name another place"
        ) from error


@contextlib.contextmanager
def whole_folder(final: Path, shared: bool = False) -> Iterator[Path]:
    """A new folder to be filled, which is named `final` when the block has ended without an error.

    Args:
        shared: several processes may write it at once; the first one's stays, and an error is none
            then. Otherwise an older folder of that name is replaced.

    Raises:
        OSError: if it cannot be written.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if shared:
        unique = f"{os.getpid()}-{secrets.token_hex(4)}"
        temporary = final.with_name(f"{WRITING}{final.name}-{unique}")
    else:
        recover(final)
        temporary = final.with_name(f"{WRITING}{final.name}")
    try:
        temporary.mkdir()
        yield temporary
        _follow_umask(temporary)
        if shared:
            temporary.rename(final)
        else:
            _replace_folder(temporary, final)
    except OSError:
        if not (shared and final.is_dir()):  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Inside the block this process is the only one that has locked `file`, which is made where it is missing;
    where no file can be locked, nothing waits. A process that ends, however, has let go.

    Returns: whether another one was waited for.
    """
    with contextlib.ExitStack() as stack:
        waited = False
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Not flock: forked processes would hold it as well, and may live on.
            waited = _lock(stack.enter_context(file.open("a")))
        yield waited


def end_with_parent(starter: int | None = None) -> None:
    """Let this process be killed when the one that started it is gone, however: it would go on writing where
    the next life of a run writes.

    Args:
        starter: process id of that one; None if multiprocessing knows it.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    known = starter if parent is None else parent.pid
    if known is not None and known != os.getppid():  # gone already
        os._exit(1)


def _lock(stream: IO[str]) -> bool:
    begun = time.monotonic()
    while time.monotonic() < begun + SILENT_WAIT_S:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # either may say that another has it
            time.sleep(0.05)
        else:
            return time.monotonic() - begun > 0.04
    if process_rank() == 0:
        print(f"waiting for another process, which has locked {stream.name}", flush=True)
    fcntl.lockf(stream, fcntl.LOCK_EX)
    return True


def _follow_umask(folder: Path) -> None:
    """Some libraries make files that only their owner can read, whatever the umask."""
    mode = stat.S_IMODE(folder.stat().st_mode)  # of a folder just made: 0777 without the umask
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


def _replace_folder(new: Path, final: Path) -> None:
    replaced = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        final.rename(replaced)
    new.rename(final)
    flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_whole(folder: Path) -> None:
    """Remove a folder; a kill meanwhile does not leave half of it under its name."""
    removing = folder.with_name(f"{REMOVING}{folder.name}")
    shutil.rmtree(removing, ignore_errors=True)
    folder.rename(removing)
    shutil.rmtree(removing)


def recover(final: Path) -> bool:
    """Finish or undo what a kill interrupted at `final`; whether it was being written anew."""
    replaced = final.with_name(f"{REPLACED}{final.name}")
    if replaced.exists() and not final.exists():
        replaced.rename(final)
    was_writing = final.with_name(f"{WRITING}{final.name}").exists()
    for prefix in (WRITING, REPLACED, REMOVING):
        leftover = final.with_name(f"{prefix}{final.name}")
        if leftover.exists():
            shutil.rmtree(leftover)
    return was_writing


def unfinished(parent: Path) -> list[Path]:
    """The places in `parent` at which a kill interrupted something."""
    prefixes = (WRITING, REPLACED, REMOVING)
    found = [(p, prefix) for prefix in prefixes for p in parent.glob(f"{prefix}*") if p.is_dir()]
    return sorted({path.with_name(path.name[len(prefix) :]) for path, prefix in found})


def flush(path: Path) -> None:
    """Force a file or a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems cannot flush a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def flush_all(folder: Path) -> None:
    """Force a folder with everything in it to disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def link(place: Path, target: str) -> None:
    """Make or move a relative link in one step."""
    temporary = place.with_name(f".{place.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    temporary.replace(place)
