"""The numbers of system calls: libseccomp's tables, and what is newer than they are."""

from __future__ import annotations

import pyseccomp

_ARCHITECTURES = {
    "x86_64": pyseccomp.Arch.X86_64,
    "x32": pyseccomp.Arch.X32,
    "x86": pyseccomp.Arch.X86,
    "aarch64": pyseccomp.Arch.AARCH64,
    "arm": pyseccomp.Arch.ARM,
}
_X32_BIT = 0x40000000

_EVERYWHERE = {
    "cachestat": 451,
    "fchmodat2": 452,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
}
"""Since Linux 5.1 a new call has the same number on every architecture."""

_OF_ONE = {
    "x86_64": {"map_shadow_stack": 453, "uretprobe": 335},
    # libseccomp knows these only as parts of socketcall and ipc; by Linux 5.1 at the latest
    # they are calls of their own too.
    "x86": {
        "map_shadow_stack": 453,
        "recvmmsg": 337,
        "sendmmsg": 345,
        "socket": 359,
        "socketpair": 360,
        "bind": 361,
        "connect": 362,
        "listen": 363,
        "accept4": 364,
        "getsockopt": 365,
        "setsockopt": 366,
        "getsockname": 367,
        "getpeername": 368,
        "sendto": 369,
        "sendmsg": 370,
        "recvfrom": 371,
        "recvmsg": 372,
        "shutdown": 373,
        "semget": 393,
        "semctl": 394,
        "shmget": 395,
        "shmctl": 396,
        "shmat": 397,
        "shmdt": 398,
        "msgget": 399,
        "msgsnd": 400,
        "msgrcv": 401,
        "msgctl": 402,
    },
}


def resolve(abi: str, name: str) -> int | None:
    """The number of a call in an ABI, or None if there is no such call (that is known here)."""
    number = _OF_ONE.get(abi, {}).get(name)
    if number is None:
        number = _EVERYWHERE.get(name)
        if number is not None and abi == "x32":
            number |= _X32_BIT
    if number is not None:
        return number
    try:
        number = pyseccomp.resolve_syscall(_ARCHITECTURES[abi], name)
    except (OSError, ValueError):
        return None
    # Negative: a call that only other architectures have.
    return number if number >= 0 else None
