"""Device, dtype, threads and allocator: what makes the same arithmetic fast."""

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from wordbrush.errors import DeviceError, UsageError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# From malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -3, -4, -8
_INT_MAX = 2**31 - 1


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: no device is called that.
        DeviceError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {name!r}; one of auto, cpu, cuda, cuda:N, mps")
    if (device.index or 0) >= _count(device.type):
        raise DeviceError(f"this machine has no {name!r} device that PyTorch can use; try device 'auto'")
    return device


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(kind == "cpu" or torch.backends.mps.is_available())


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; "auto" takes half precision where the device computes faster in it."""
    if name == "auto":
        if device.type != "cpu":
            return torch.float16
        return torch.bfloat16 if supports_bf16_cpu() else torch.float32
    if name not in _DTYPES:
        raise UsageError(f"unknown dtype {name!r}; one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def fast_precision() -> Literal["no", "bf16", "fp16"]:
    """The precision in which the machine's first device trains fastest."""
    device = resolve_device("auto")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and supports_bf16_cpu() else "no"


def supports_bf16_cpu() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16); elsewhere it is slower."""
    flags = _cpu_flags()
    return "amx_bf16" in flags or "avx512_bf16" in flags


@cache
def _cpu_flags() -> frozenset[str]:
    get = getattr(torch.cpu, "get_capabilities", None)
    if get is not None:
        return frozenset(name for name, value in get().items() if value is True)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@cache
def prepare_process() -> None:
    """Set the allocator and the number of threads, once a process; call before the first large tensor."""
    _keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))


def _keep_freed_memory() -> bool:
    """Ask glibc not to hand freed blocks back to the kernel; returns whether it agreed.

    Otherwise every activation is mapped and unmapped anew, and a pass through a network spends much of its
    time in page faults. Peak memory is the same; it is given back when the process ends.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # A glibc that caps the threshold refuses the first; no mmap at all then has the same effect.
    mapped = mallopt(_M_MMAP_THRESHOLD, _INT_MAX) or mallopt(_M_MMAP_MAX, 0)
    padded = mallopt(_M_TRIM_THRESHOLD, _INT_MAX) and mallopt(_M_TOP_PAD, 1 << 30)
    return bool(mapped and padded and mallopt(_M_ARENA_MAX, 1))


def available_cpus() -> int:
    """CPUs this process may use: its affinity, capped by a container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):
        return count
