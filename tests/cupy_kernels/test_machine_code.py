"""Every kernel, compiled for every architecture without a GPU: no spills, few enough registers, the instructions that
it was written for."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cupy_kernels.compiler import ARCHITECTURES, SOURCES, compile_source
from cupy_kernels.launch import PROJECT_COLUMNS, SOURCE_OF
from tests.cupy_kernels.emulated import EMULATOR

pytest.importorskip("cupy", reason="NVRTC comes with CuPy, which is for Linux")

# Of 64 Ki registers: 256 threads of mma.sync twice, 384 of wgmma once
REGISTERS = {"sm80": 128, "sm90": 168, "decode_gate_up": 128, "decode_down": 128}
INSTRUCTIONS = {
    "experts_sm80.cu": ("HMMA.16816.F32.BF16", "LDSM", "LDGSTS"),
    "experts_sm90.cu": (*(f"HGMMA.64x{n}x16.F32.BF16" for n in PROJECT_COLUMNS), "UTMALDG.2D", "USETMAXREG", "SYNCS"),
    "decode.cu": ("LDG.E.128", "HMMA.16816.F32.BF16"),
}
CASES = [
    (source, arch)
    for source in sorted(set(SOURCE_OF.values()))
    for arch in ARCHITECTURES
    if source != "experts_sm90.cu" or arch == "sm_90a"
]


def disassembler() -> str:
    found = shutil.which("nvdisasm")
    if not found and (triton := importlib.util.find_spec("triton")) and triton.origin:
        beside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        found = str(beside) if beside.is_file() else None
    if not found:
        if os.environ.get("CI"):
            pytest.fail("no nvdisasm; it comes with triton, which torch for CUDA brings")
        pytest.skip("no nvdisasm; it comes with triton, which torch for CUDA brings")
    return found


@pytest.mark.parametrize(("source", "arch"), CASES)
def test_compiles_without_spills_and_to_the_expected_instructions(source: str, arch: str) -> None:
    cubin = compile_source(SOURCES / source, arch)
    seen = set()
    for block in cubin.log.split("Compiling entry function")[1:]:
        name = re.search(r"'(\w+)'", block)[1]  # type: ignore[index]
        seen.add(name)
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in block, name
        registers = int(re.search(r"Used (\d+) registers", block)[1])  # type: ignore[index]
        allowed = next(most for part, most in REGISTERS.items() if part in name)
        assert registers <= allowed, f"{name}: {registers} registers"
    assert seen == {kernel for kernel, file in SOURCE_OF.items() if file == source}
    assert "warning" not in cubin.log.lower(), cubin.log  # e.g. products that ptxas had to put one after another

    code = subprocess.run([disassembler(), "-c", str(cubin.path)], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"\b(LDL|STL)\b", code), "local memory"
    missing = [word for word in INSTRUCTIONS[source] if word not in code]
    assert missing == []


def test_the_gate_sees_a_kernel_that_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPY_KERNELS_CACHE", str(tmp_path / "cache"))
    for file in SOURCES.iterdir():
        text = file.read_text()
        if file.name == "experts_sm80.cu":
            text = text.replace("KERNEL(THREADS, 2,", "KERNEL(THREADS, 4,")  # half of the registers
        (tmp_path / file.name).write_text(text)
    log = compile_source(tmp_path / "experts_sm80.cu", "sm_90").log
    assert re.search(r"[1-9]\d* bytes spill stores", log)


def test_every_wrapper_of_the_device_header_has_a_twin_in_the_emulator() -> None:
    text = (SOURCES / "device.cuh").read_text()
    device = text[: text.index('#include "emulator.h"')]
    wrappers = set(re.findall(r"^(?:template <[^>]*> )?DEVICE [\w ]+?[ *](\w+)\(", device, re.MULTILINE))
    assert len(wrappers) >= 18
    host = "".join(path.read_text() for path in EMULATOR.iterdir())
    lacking = {name for name in wrappers - {"shared_address"} if not re.search(rf"\b{name}\(", host)}
    assert lacking == set()
