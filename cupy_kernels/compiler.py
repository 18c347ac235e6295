"""CUDA C++ -> machine code by NVRTC, kept on disk. Needs neither a GPU nor a driver.

The cache (CUPY_KERNELS_CACHE, else XDG_CACHE_HOME/cupy_kernels, else ~/.cache/cupy_kernels) holds one file for each
source with its headers, options, NVRTC version and architecture. A file's name also has a digest of its content, and it
is moved there in one step, so that any number of processes may start at once and a damaged file is compiled anew.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupy_kernels.errors import KernelError

SOURCES = Path(__file__).parent / "csrc"
OPTIONS = ("-std=c++17", "--ptxas-options=-v")
ARCHITECTURES = ("sm_80", "sm_90", "sm_90a")
"""Those that the tests compile for; any newer one is compiled when it is met."""
_INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Cubin:
    """Machine code.

    path  the file in the cache; beside it, .log, what the compiler said
    """

    path: Path

    @property
    def log(self) -> str:
        """Registers, spills and warnings, by ptxas."""
        return self.path.with_suffix(".log").read_text(encoding="utf-8")


def cache_dir() -> Path:
    """Where machine code is kept."""
    if named := os.environ.get("CUPY_KERNELS_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cupy_kernels"


def compile_source(source: Path, arch: str, options: Sequence[str] = OPTIONS) -> Cubin:
    """The machine code of a source file, from the cache where it is there.

    Args:
        source: A .cu file; headers that it includes by "name" lie beside it.
        arch: ``sm_80``, ``sm_90a``, ...
        options: Of NVRTC.

    Raises:
        KernelError: it does not compile, with what the compiler says; or there is no NVRTC.
    """
    nvrtc = _nvrtc()
    parts = [arch, *options, ".".join(map(str, nvrtc.getVersion())), *_texts(source)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = cache_dir()
    for path in folder.glob(f"{source.stem}.{arch}.{key}.*.cubin"):
        if path.name.split(".")[-2] == _digest(path.read_bytes()):
            return Cubin(path)
        path.unlink(missing_ok=True)  # cut off or changed
    code, log = _compile(nvrtc, source, arch, options)
    path = folder / f"{source.stem}.{arch}.{key}.{_digest(code)}.cubin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for content, name in ((log.encode(), path.with_suffix(".log")), (code, path)):
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name.name}.", delete=False) as file:
                file.write(content)
            os.replace(file.name, name)
    except OSError as error:
        raise KernelError(
            f"cupy_kernels: cannot keep machine code in {folder} ({error.strerror}); set CUPY_KERNELS_CACHE"
        ) from error
    return Cubin(path)


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:16]


def _texts(source: Path) -> list[str]:
    """The source and all headers beside it that it includes, each once, in the order they are met."""
    texts: dict[Path, str] = {}

    def read(path: Path) -> None:
        if path in texts or not path.is_file():  # a host-only header (the emulator's) is not beside it
            return
        texts[path] = path.read_text(encoding="utf-8")
        for name in _INCLUDE.findall(texts[path]):
            read(path.parent / name)

    read(source)
    return list(texts.values())


def _nvrtc() -> Any:
    try:
        from cupy.cuda import nvrtc
    except ImportError as error:
        raise KernelError(f"cupy_kernels: CuPy with NVRTC is needed ({error}); pip install 'mmframe[cuda]'") from error
    return nvrtc


@functools.cache
def cuda_include_dir() -> str | None:
    """Folder of cuda_bf16.h: of the nvidia-cuda-runtime package or of a toolkit."""
    try:
        from cuda import pathfinder

        found = pathfinder.find_nvidia_header_directory("cudart")
        if found:
            return found
    except (ImportError, RuntimeError):
        pass
    for root in (os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if root and (Path(root) / "include" / "cuda_bf16.h").is_file():
            return str(Path(root) / "include")
    return None


def _compile(nvrtc: Any, source: Path, arch: str, options: Sequence[str]) -> tuple[bytes, str]:
    include = cuda_include_dir()
    if include is None:
        raise KernelError("cupy_kernels: cuda_bf16.h is not found; pip install nvidia-cuda-runtime, or set CUDA_PATH")
    words = (*options, f"-arch={arch}", f"-I{source.parent}", f"-I{include}")
    program = nvrtc.createProgram(source.read_text(encoding="utf-8"), source.name, (), ())
    try:
        try:
            nvrtc.compileProgram(program, words)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program).strip()
            raise KernelError(f"cupy_kernels: {source.name} does not compile for {arch}: {log or error}") from error
        # CuPy 14.2 leaves out the last byte, a zero, which disassemblers miss
        return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def main() -> None:
    """`python -m cupy_kernels.compiler`: compiles everything for every architecture and says what it needs."""
    for source in sorted(SOURCES.glob("*.cu")):
        for arch in ARCHITECTURES:
            if source.stem.endswith("_sm90") and arch != "sm_90a":
                continue
            begun = time.perf_counter()
            cubin = compile_source(source, arch)
            print(
                f"{source.name:<18}{arch:<8}{cubin.path.stat().st_size:>9} bytes  {time.perf_counter() - begun:5.1f} s"
            )


if __name__ == "__main__":
    main()
