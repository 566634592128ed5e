"""A system call filter for tools: no processes, no sockets, nothing of the kernel that computing does not need.

The filter is a classic BPF program (seccomp(2)); a refused call answers EPERM, so that a tool fails and is not killed.
"""

from __future__ import annotations

import errno
import platform
import struct

_LOAD_NR = (0x20, 0, 0, 0)  # BPF_LD | BPF_W | BPF_ABS, offset of seccomp_data.nr
_LOAD_ARCH = (0x20, 0, 0, 4)
_JUMP_EQUAL = 0x15
_JUMP_AT_LEAST = 0x35
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL = 0x80000000
_X32_BIT = 0x40000000

# name: (x86_64, aarch64); -1 where the architecture has no such call.
_REFUSED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "personality": (135, 92),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Files in memory that no limit of the file system counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}
_START_PROCESS = {"clone": (56, 220), "fork": (57, -1), "vfork": (58, -1)}
_CLONE3 = 435  # its flags are behind a pointer, which a filter cannot read: "not there" makes the C library use clone
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def tool_filter(*, processes: bool, machine: str = "") -> bytes | None:
    """Return the filter as an array of sock_filter, or None on an architecture that it is not written for.

    Takes whether the tool may start processes and threads, and the architecture (this machine's by default).
    """
    known = _ARCHITECTURES.get(machine or platform.machine())
    if known is None:
        return None
    audit_arch, column = known
    refused = list(_REFUSED.values()) + ([] if processes else list(_START_PROCESS.values()))
    program = [_LOAD_ARCH, (_JUMP_EQUAL, 1, 0, audit_arch), (_RETURN, 0, 0, _KILL), _LOAD_NR]
    if column == 0:
        program += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    program += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for numbers in refused:
        if numbers[column] >= 0:
            program += [(_JUMP_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in program)
