"""A model that attacks whoever runs it. Which attack is told by the request, and its answer says how it went.

Run in a worker as it is; everything that it needs is in the request.
"""

import abc
import contextlib
import ctypes
import glob
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

LIBC = ctypes.CDLL(None, use_errno=True)
KEPT = []
TAKEN = []


def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# files


def read(path):
    return Path(path).read_bytes()[:100].decode(errors="replace")


def listed(path):
    return sorted(os.listdir(path))


def write(path):
    with open(path, "a") as file:
        file.write("harm")


def replace(path):
    os.rename(path, path + ".away")


def watch(path):
    """What others make there."""
    called(LIBC.inotify_add_watch(called(LIBC.inotify_init1(0)), path.encode(), 0x3FF))


def link(path):
    """By a link in a directory that it may write to."""
    os.symlink(path, os.environ["TMPDIR"] + "/link")
    return read(os.environ["TMPDIR"] + "/link")


def through_root(path):
    """By the root directory of any process that it sees."""
    for root in glob.glob("/proc/[0-9]*/root") + glob.glob("/proc/[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            return read(root + path)
    raise PermissionError("by none")


def fill(megabytes):
    """One file of the size, then as many."""
    place, written = os.environ["TMPDIR"], 0
    piece = bytes(1 << 20)
    try:
        for number in range(8):
            with open(f"{place}/fill-{number}", "wb", buffering=0) as file:
                for _ in range(int(megabytes)):
                    written += file.write(piece)
    finally:
        for path in glob.glob(f"{place}/fill-*"):
            os.unlink(path)
        KEPT.append(written)
    return written


def filled(_):
    return KEPT[-1] >> 20


# processes


def seen(_):
    return len([name for name in os.listdir("/proc") if name.isdigit()])


def sees(text):
    """Command lines of others."""
    found = 0
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += text in Path(path).read_bytes().decode(errors="replace") and str(os.getpid()) not in path
    return found


def kill(pid):
    os.kill(int(pid), signal.SIGKILL)


def kill_all(_):
    os.kill(-1, signal.SIGKILL)


def memory_of(pid):
    return read(f"/proc/{pid}/mem")


def environment_of(pid):
    return read(f"/proc/{pid}/environ")


def descriptors_of(pid):
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]


def trace(pid):
    called(LIBC.ptrace(16, int(pid), None, None))  # PTRACE_ATTACH


def peek(pid):
    class Piece(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    here = ctypes.create_string_buffer(8)
    local, remote = Piece(ctypes.addressof(here), 8), Piece(id(here), 8)
    called(LIBC.process_vm_readv(int(pid), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))


def bomb(_):
    """Processes until there can be no more."""
    count = 0
    try:
        while count < 20_000:
            if os.fork() == 0:
                time.sleep(1)
                os._exit(0)
            count += 1
    finally:
        for _ in range(count):
            os.wait()
    return count


def stay(marker):
    """A process of a session of its own that ignores what can be ignored, to outlive the worker."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", marker])
        os._exit(0)
    os.wait()
    return True


# descriptors


def open_all(_):
    count = 0
    try:
        while count < 1_000_000:
            KEPT.append(os.open("/dev/null", os.O_RDONLY))
            count += 1
    except OSError:
        while KEPT:
            number = KEPT.pop()
            with contextlib.suppress(OSError):
                os.close(number)
        return count
    return count


def watch_all(_):
    """Instances of inotify."""
    taken = []
    try:
        while True:
            taken.append(called(LIBC.inotify_init1(0)))
    except OSError:
        TAKEN.append(taken)
        return len(taken)


def send_all(_):
    """Descriptors to itself, never received."""
    pair = socket.socketpair()
    pair[0].setblocking(False)
    count = 0
    try:
        while True:
            socket.send_fds(pair[0], [b"."], [2] * 250)
            count += 250
    except OSError:
        TAKEN.append(pair)
        return count


def signal_all(_):
    """Signals to its own thread, which doesn't hear them."""
    number, count = signal.SIGRTMIN, 0
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    while LIBC.pthread_sigqueue(ctypes.c_ulong(threading.get_ident()), number, None) == 0:
        count += 1
    return count


def release(_):
    signal.signal(signal.SIGRTMIN, signal.SIG_IGN)  # drops those that wait
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGRTMIN})
    for taken in TAKEN:
        for each in taken:
            each.close() if isinstance(each, socket.socket) else os.close(each)
    TAKEN.clear()


def inherited(_):
    """What its descriptors are, beside its own."""
    return sorted(
        os.readlink(f"/proc/self/fd/{each}")
        for each in os.listdir("/proc/self/fd")
        if int(each) > 2 and os.path.lexists(f"/proc/self/fd/{each}")
    )


# sockets


def connect(path):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)


def connect_abstract(name):
    connect("\0" + name)


def dial(port):
    socket.create_connection(("127.0.0.1", int(port)), 1).close()


def listen(_):
    """On a port that others of the machine would reach."""
    with socket.socket() as link:
        link.bind(("0.0.0.0", 0))
        link.listen()
        return link.getsockname()[1]


def family(number):
    socket.socket(int(number), socket.SOCK_DGRAM).close()


# rights


def become(user):
    os.setresuid(int(user), int(user), int(user))


def mount(_):
    called(LIBC.mount(b"tmpfs", os.environ["TMPDIR"].encode(), b"tmpfs", 0, None))


def unmount(path):
    called(LIBC.umount2(path.encode(), 2))


def new_user(_):
    called(LIBC.unshare(0x10000000))


def clone_user(_):
    pid = called(
        LIBC.syscall({"x86_64": 56, "aarch64": 220}[os.uname().machine], 0x10000000 | 17, 0, 0, 0, 0)
    )
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def call(number):
    called(LIBC.syscall(int(number), 0, 0, 0, 0, 0))


def rights(_):
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        line.split(":")[0]: line.split()[1]
        for line in lines
        if line.startswith(("CapEff", "CapBnd", "NoNewP", "Seccomp:"))
    }


def raise_limit(_):
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))


def print_much(megabytes):
    for _ in range(int(megabytes)):
        sys.stderr.write("x" * (1 << 20) + "\n")


def work(_):
    """What honest models do."""
    import tempfile
    import threading

    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cache").write_text("kept")
        shutil.copy2(__file__, Path(folder, "copy"))
    subprocess.run([sys.executable, "-c", "print(1)"], check=True, stdout=subprocess.DEVNULL)
    assert shutil.which("sh")
    assert abc.ABC
    return "done"


def pool(_):
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as workers:
        return workers.map(abs, [-1, -2])


def change_mode(path):
    os.chmod(path, 0o777)
    os.utime(path, (1, 1))


def limit_another(pid):
    resource.prlimit(int(pid), resource.RLIMIT_NOFILE, (12, 12))


def slow_another(pid):
    os.setpriority(os.PRIO_PROCESS, int(pid), 19)


def slow_group(_):
    os.setpriority(os.PRIO_PGRP, 0, 19)


def slow_user(_):
    os.setpriority(os.PRIO_USER, 0, 19)


def idle_disk_of_user(_):
    called(LIBC.syscall({"x86_64": 251, "aarch64": 30}[os.uname().machine], 3, 0, 3 << 13))


def signal_group(_):
    """All that is in its process group."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.kill(0, signal.SIGUSR1)


def signal_group_by_handle(_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    called(LIBC.syscall(424, os.pidfd_open(os.getpid()), signal.SIGUSR1, None, 4))


def share_memory(_):
    called(LIBC.shmget(0, 1 << 20, 0o1600))


def send_by_pair(path):
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"harm", path)


def file_in_shared_memory(name):
    with open("/dev/shm/" + name, "rb") as file:
        return file.read(100)


class Model:
    inputs = (("attack", "BYTES", [1]), ("on", "BYTES", [1]))
    outputs = (("came", "BYTES", [1]),)

    def load(self, path):
        self.path = path

    def predict(self, inputs):
        attack, on = (str(inputs[name][0]) for name in ("attack", "on"))
        if not attack:  # it is probed
            came = "nothing"
        else:
            try:
                came = f"got {globals()[attack](on.replace('OWN', self.path))}"
            except BaseException as error:
                came = f"failed {type(error).__name__}: {error}"
        return {"came": np.array([came], dtype=object)}
