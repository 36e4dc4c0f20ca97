import os
import subprocess
import sys

import pytest
import torch

from wordbrush.diffusion import runtime
from wordbrush.errors import DeviceError, UsageError

CPU = torch.device("cpu")
FAULTS = """
import resource, sys, torch
from wordbrush.diffusion.runtime import prepare_process
if sys.argv[1] == "set":
    prepare_process()
torch.set_num_threads(1)
layers = [layer for _ in range(6) for layer in (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.SiLU())]
network = torch.nn.Sequential(*layers)
def train():
    network(torch.zeros(8, 16, 96, 96)).sum().backward()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    train()
start = faults()
for _ in range(4):
    train()
print(faults() - start)
"""


def test_devices() -> None:
    assert runtime.resolve_device("cpu") == CPU
    assert runtime.resolve_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("tpu", "", "cuda:x", "meta"):
        with pytest.raises(UsageError, match="unknown device"):
            runtime.resolve_device(name)
    with pytest.raises(DeviceError, match="cuda:99"):
        runtime.resolve_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(DeviceError, match="no 'cuda' device"):
        runtime.resolve_device("cuda")


def test_dtypes() -> None:
    assert runtime.resolve_dtype("bfloat16", CPU) == torch.bfloat16
    assert runtime.resolve_dtype("auto", torch.device("cuda")) == torch.float16
    expected = torch.bfloat16 if runtime.supports_bf16_cpu() else torch.float32
    assert runtime.resolve_dtype("auto", CPU) == expected
    with pytest.raises(UsageError, match="unknown dtype 'float8'"):
        runtime.resolve_dtype("float8", CPU)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2", "amx_bf16"}, True), ({"avx512_bf16"}, True), ({"avx2", "avx512_f"}, False), (set(), False)],
)
def test_bf16_needs_the_instructions(
    flags: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: frozenset(flags))
    assert runtime.supports_bf16_cpu() is expected
    assert runtime.resolve_dtype("auto", CPU) == (torch.bfloat16 if expected else torch.float32)
    if runtime.resolve_device().type == "cpu":
        assert runtime.fast_precision() == ("bf16" if expected else "no")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_the_allocator_keeps_freed_memory() -> None:
    """The activations of a pass are freed and taken again: page faults, unless the allocator keeps them."""

    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def faults(mode: str) -> int:
        run = subprocess.run(
            [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, env=plain
        )
        return int(run.stdout)

    if not runtime._keep_freed_memory():
        pytest.skip("another C library than glibc")
    assert faults("set") < 0.5 * faults("default")
