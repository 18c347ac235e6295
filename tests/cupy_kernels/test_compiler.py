"""The cache of machine code: one file for each content, whatever happens to it and however many ask at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cupy_kernels import compiler
from cupy_kernels.compiler import cache_dir, compile_source
from cupy_kernels.errors import KernelError

pytest.importorskip("cupy", reason="NVRTC comes with CuPy, which is for Linux")

SMALL = '#include "helper.cuh"\nextern "C" __global__ void twice(float* x) { x[threadIdx.x] *= FACTOR; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUPY_KERNELS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "helper.cuh").write_text("#define FACTOR 2.f\n")
    (tmp_path / "small.cu").write_text(SMALL)
    return tmp_path / "small.cu"


def test_the_second_time_nothing_is_compiled(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_source(source, "sm_80")
    assert first.path.read_bytes()[:4] == b"\x7fELF" and "Used" in first.log
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compile_source(source, "sm_80").path == first.path


def test_another_architecture_option_source_or_header_is_another_file(source: Path) -> None:
    paths = {compile_source(source, "sm_80").path, compile_source(source, "sm_90").path}
    paths.add(compile_source(source, "sm_80", ("-std=c++17", "-DX")).path)
    (source.parent / "helper.cuh").write_text("#define FACTOR 3.f\n")
    paths.add(compile_source(source, "sm_80").path)
    source.write_text(SMALL + "// more\n")
    paths.add(compile_source(source, "sm_80").path)
    assert len(paths) == 5


@pytest.mark.parametrize("damage", [b"", b"\x7fELF cut off"])
def test_a_damaged_file_is_compiled_anew(source: Path, damage: bytes) -> None:
    path = compile_source(source, "sm_80").path
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert compile_source(source, "sm_80").path.read_bytes() == whole
    assert [p.name for p in cache_dir().glob("*.cubin")] == [path.name]


def test_what_does_not_compile_says_where(source: Path) -> None:
    source.write_text("extern int broken(;\n")
    with pytest.raises(KernelError, match=r"small.cu does not compile for sm_80: .*small.cu\(1\)"):
        compile_source(source, "sm_80")


def test_a_cache_that_cannot_be_written_says_so(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = source.parent / "a_file"
    file.write_text("")
    monkeypatch.setenv("CUPY_KERNELS_CACHE", str(file / "cache"))
    with pytest.raises(KernelError, match="cannot keep machine code in .*set CUPY_KERNELS_CACHE"):
        compile_source(source, "sm_80")


def test_processes_that_start_at_once_share_the_cache(source: Path) -> None:
    code = "import sys; from pathlib import Path; from cupy_kernels.compiler import compile_source\n"
    code += "print(compile_source(Path(sys.argv[1]), 'sm_80').path)"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(source)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    paths = {process.communicate()[0].strip() for process in running}
    assert all(process.returncode == 0 for process in running)
    assert paths == {str(path) for path in cache_dir().glob("*.cubin")} and len(paths) == 1
