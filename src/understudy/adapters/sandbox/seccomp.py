"""System calls that no model needs: refused for good, so that what is behind them can't be attacked.

Own code instead of libseccomp, which isn't everywhere: a list of numbers and four rules. A refusal is EPERM,
an error like any other to whoever asked.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from understudy.adapters.sandbox import kernel

# (x86_64, aarch64); None: it isn't there. From the kernel's arch/x86/entry/syscalls and unistd.h.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "syslog": (103, 116), "nfsservctl": (180, 42), "lookup_dcookie": (212, 18),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None), "uselib": (134, None), "modify_ldt": (154, None),
    "vhangup": (153, 58),
}  # fmt: skip
# Landlock has no say in these. They do nothing where it is all there is, and say that they did: what copies
# files sets their modes and times too, and shouldn't fail by it.
_PRETENDED: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466),
}  # fmt: skip
# What is shared by all processes of the machine, or of the user.
_SHARED: dict[str, tuple[int | None, int | None]] = {
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    "inotify_init": (253, None), "inotify_init1": (294, 26),  # tells what happens in any directory
}  # fmt: skip
# (x86_64, aarch64, what arguments have to be, from 0). Never a process group, for the agent's is the workers'
# too whatever namespaces they are in, nor all that the user runs.
_OF_ONE_PROCESS = (
    (141, 140, {0: 0}), (251, 30, {0: 1}),  # setpriority, ioprio_set: which
    (424, 424, {3: 0}),  # pidfd_send_signal: flags
)  # fmt: skip
# Limits and priorities, of this process alone.
_OWN_ONLY = (
    (302, 261, {0: 0}),  # prlimit64
    (203, 122, {0: 0}), (144, 119, {0: 0}),  # sched_setaffinity, sched_setscheduler
    (142, 118, {0: 0}), (314, 274, {0: 0}),  # sched_setparam, sched_setattr
    (141, 140, {0: 0, 1: 0}), (251, 30, {0: 1, 1: 0}),  # setpriority, ioprio_set: which, who
)  # fmt: skip
_KILL_CALL = (62, 129)
_SOCKETPAIR = (53, 199)
_DATAGRAMS, _TYPE_MASK = 2, 0xF
_CLONE, _CLONE3 = (56, 220), 435
_SOCKET = (41, 198)
_IOCTL = (16, 29)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # typing into somebody's terminal
_NEW_ANYTHING = (
    kernel.NEW_NS | kernel.NEW_CGROUP | kernel.NEW_UTS | kernel.NEW_IPC
    | kernel.NEW_USER | kernel.NEW_PID | kernel.NEW_NET
)  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # calls of another ABI have numbers beyond it

LOCAL = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)  # of a network of its own
INTERNET = (socket.AF_INET, socket.AF_INET6)
OF_MACHINE = (*INTERNET, socket.AF_NETLINK)  # of the machine's network, without its abstract Unix sockets

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in struct seccomp_data; of arguments the low half.
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
_SET_MODE_FILTER, _ALL_THREADS = 1, 1


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def refuse_calls(families: tuple[int, ...], *, shares_machine: bool = False) -> None:
    """Let this process and its children open sockets of these `families` only, and call nothing of the above.

    `shares_machine`: it has no namespaces of its own. Raises `OSError` where that can't be had.
    `PR_SET_NO_NEW_PRIVS` must have been set.
    """
    install(program(families, shares_machine=shares_machine))


def install(code: bytes) -> None:
    """A filter, for this process and its children. Raises `OSError`."""
    buffer = ctypes.create_string_buffer(code, len(code))
    installed = _Filter(len(code) // 8, ctypes.addressof(buffer))
    kernel.call(
        kernel.number_of("seccomp"), _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(installed), what="seccomp"
    )


def program(families: tuple[int, ...], *, shares_machine: bool = False) -> bytes:
    """The filter, as instructions of the kernel's classic BPF."""
    if kernel.MACHINE not in _ARCHITECTURES:
        raise OSError(f"system calls aren't known on {kernel.MACHINE}")
    column, architecture = _ARCHITECTURES[kernel.MACHINE]
    refused = _ERROR | errno.EPERM
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        *_if(_AT_LEAST, _X32, [_step(_RETURN, refused)]),
        *_if(_EQUAL, _CLONE3, [_step(_RETURN, _ERROR | errno.ENOSYS)]),  # its flags can't be looked at
        *_if(
            _EQUAL,
            _CLONE[column],
            [
                _step(_LOAD, _FIRST),
                *_if(_ANY_BIT, _NEW_ANYTHING, [_step(_RETURN, refused)]),
                _step(_RETURN, _ALLOW),
            ],
        ),
        *_if(
            _EQUAL,
            _SOCKET[column],
            [
                _step(_LOAD, _FIRST),
                *(step for family in families for step in _if(_EQUAL, family, [_step(_RETURN, _ALLOW)])),
                _step(_RETURN, _ERROR | errno.EACCES),
            ],
        ),
        *_if(
            _EQUAL,
            _IOCTL[column],
            [
                _step(_LOAD, _SECOND),
                *_if(_EQUAL, _TIOCSTI, [_step(_RETURN, refused)]),
                *_if(_EQUAL, _TIOCLINUX, [_step(_RETURN, refused)]),
                _step(_RETURN, _ALLOW),
            ],
        ),
    ]
    steps += _if(
        _EQUAL,
        _KILL_CALL[column],
        [_step(_LOAD, _FIRST), *_if(_EQUAL, 0, [_step(_RETURN, refused)]), _step(_RETURN, _ALLOW)],
    )
    if socket.AF_UNIX not in families:
        steps += _no_datagram_pairs(column)
    outcomes = [(_REFUSED, refused)]
    if shares_machine:
        outcomes += [(_SHARED, refused), (_PRETENDED, _ERROR)]
        for *own, arguments in _OWN_ONLY:
            steps += _only_with(own[column], arguments)
    for *one_process, arguments in _OF_ONE_PROCESS:
        steps += _only_with(one_process[column], arguments)
    for calls, outcome in outcomes:
        for numbers in calls.values():
            number = numbers[column]
            if number is not None:
                steps += _if(_EQUAL, number, [_step(_RETURN, outcome)])
    steps.append(_step(_RETURN, _ALLOW))
    return b"".join(steps)


def _no_datagram_pairs(column: int) -> list[bytes]:
    """What is sent to a pair of datagram sockets could be sent to anybody's."""
    return _if(
        _EQUAL,
        _SOCKETPAIR[column],
        [
            _step(_LOAD, _SECOND),
            _step(_AND, _TYPE_MASK),
            *_if(_EQUAL, _DATAGRAMS, [_step(_RETURN, _ERROR | errno.EACCES)]),
            _step(_RETURN, _ALLOW),
        ],
    )


def _only_with(number: int, arguments: dict[int, int]) -> list[bytes]:
    """Allow the call where its arguments are these, else refuse it."""
    allowed = [_step(_RETURN, _ALLOW)]
    for argument, value in arguments.items():
        allowed = [_step(_LOAD, _FIRST + 8 * argument), *_if(_EQUAL, value, allowed)]
    return _if(_EQUAL, number, [*allowed, _step(_RETURN, _ERROR | errno.EPERM)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _if(test: int, value: int, then: list[bytes]) -> list[bytes]:
    return [_step(test, value, 0, len(then)), *then]
