"""Mooring's default seccomp profile: what a program needs that is not out to administer the host.

A call is on a list here if it acts on the caller's own process, files, memory or sockets, or is
checked by capabilities and namespaces anyway. Left out is what acts on the kernel as a whole, or
what few programs use and much of the kernel stands behind. The effect is that of Docker's default.
"""

from __future__ import annotations

from .model import ALLOW, ENOSYS, EPERM, Condition, Operator, Profile, Rule, errno

_FILES = """
access close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fadvise64_64 fallocate fcntl fcntl64 fdatasync flock fsync ftruncate ftruncate64 getcwd chdir fchdir
getdents getdents64 ioctl link linkat _llseek lseek mkdir mkdirat mknod mknodat name_to_handle_at
open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead
readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice symlink
symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat vmsplice write
writev
"""

_FILE_ATTRIBUTES = """
chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32
fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat
llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
fstat fstat64 fstatat64 newfstatat fstatfs fstatfs64 lstat lstat64 stat stat64 statfs statfs64 statx
futimesat utime utimensat utimensat_time64 utimes
listmount statmount
"""

_WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select _newselect
signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64
fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
"""
# io_uring is not among them: it makes calls past every filter.

_MEMORY = """
brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2
mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
pkey_mprotect process_mrelease remap_file_pages
"""

_PROCESSES = """
execve execveat exit exit_group fork vfork getpgid getpgrp getpid getppid getsid gettid
get_robust_list get_thread_area pause pidfd_open pidfd_send_signal prctl restart_syscall rseq
setpgid set_robust_list setsid set_thread_area set_tid_address uretprobe wait4 waitid waitpid
getcpu getpriority setpriority ioprio_get ioprio_set
sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min
sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield
getrlimit getrusage prlimit64 setrlimit sysinfo times ugetrlimit uname
futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
"""

_SIGNALS = """
kill rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn tgkill
tkill
"""

_IDENTITY = """
capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid
getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid
setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32
setreuid setreuid32 setuid setuid32
"""

_RESTRICTING_ONESELF = """
landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp
"""

_TIME = """
adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer
time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
timer_settime64
"""
# Setting a clock through adjtimex is checked by CAP_SYS_TIME.

_SOCKETS = """
accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
"""

_SYSTEM_V_AND_POSIX_IPC = """
ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt
shmget mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
mq_timedsend_time64 mq_unlink
"""

_OTHER = "getrandom riscv_hwprobe"

_X86 = "modify_ldt"
_X86_64 = "arch_prctl"
_ARM = """
arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2
"""

_LOOKING_INTO_PROCESSES = "process_vm_readv process_vm_writev ptrace"
"""Safe in a filter's presence only since Linux 4.8: before, a tracer could get around it."""
_SAFE_PTRACE = (4, 8)

_BY_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie
        lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount
        open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog
        umount umount2 unshare
        """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}
"""Calls that are of use only to who has the capability."""

_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, both with UNAME26, and the question which it is: no other changes the
address space's layout to an attacker's advantage."""

_AF_ALG, _AF_VSOCK = 38, 40
"""The kernel's crypto interface and the way to a virtual machine's host."""

_CLONE_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""


def profile(
    capabilities: frozenset[str], machine: str, abis: tuple[str, ...], kernel: tuple[int, int]
) -> Profile:
    """The default profile for a container with these capabilities (`CAP_…`)."""
    everywhere = (
        _FILES,
        _FILE_ATTRIBUTES,
        _WAITING,
        _MEMORY,
        _PROCESSES,
        _SIGNALS,
        _IDENTITY,
        _RESTRICTING_ONESELF,
        _TIME,
        _SOCKETS,
        _SYSTEM_V_AND_POSIX_IPC,
        _OTHER,
    )
    names = " ".join(everywhere).split()
    names += f"{_X86} {_X86_64}".split() if machine == "x86_64" else _ARM.split()
    if kernel >= _SAFE_PTRACE:
        names += _LOOKING_INTO_PROCESSES.split()
    for capability in sorted(capabilities & _BY_CAPABILITY.keys()):
        names += _BY_CAPABILITY[capability].split()
    rules = [Rule(tuple(dict.fromkeys(names)), ALLOW)]
    rules += [_allow("personality", Condition(0, Operator.EQ, p)) for p in _PERSONALITIES]
    rules += [
        _allow("socket", Condition(0, Operator.LT, _AF_ALG)),
        _allow("socket", Condition(0, Operator.EQ, _AF_ALG + 1)),
        _allow("socket", Condition(0, Operator.GT, _AF_VSOCK)),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules.append(_allow("clone", Condition(0, Operator.MASKED_EQ, _CLONE_NAMESPACES, 0)))
        # Its flags are behind a pointer, where no filter can look. ENOSYS makes libc use clone.
        rules.append(Rule(("clone3",), errno(ENOSYS)))
    return Profile(errno(EPERM), abis, tuple(rules))


def _allow(name: str, condition: Condition) -> Rule:
    return Rule((name,), ALLOW, (condition,))
