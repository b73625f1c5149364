"""NVIDIA's compiler from the wheel nvidia-cuda-nvrtc, called by ctypes: it needs neither a GPU nor a driver."""

import ctypes
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from typing import NamedTuple

OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")  # as CuPy compiles


class Report(NamedTuple):
    """The assembler's report on a kernel: registers per thread, bytes of stack and of register spills."""

    registers: int
    stack: int
    spilled: int


@cache
def library() -> ctypes.CDLL | None:
    """The compiler from the wheel; None if that is not installed."""
    try:
        paths = [path for path in files("nvidia-cuda-nvrtc") or () if re.fullmatch(r"libnvrtc\.so\.\d+", path.name)]
    except PackageNotFoundError:
        return None
    return ctypes.CDLL(str(paths[0].locate()))


def compile_cuda(source: str, arch: str) -> dict[str, Report]:
    """Compile CUDA C++ for an architecture such as "sm_90": a Report for every kernel, by name.

    Raises SyntaxError with the compiler's log.
    """
    lib, program = library(), ctypes.c_void_p()
    assert (
        lib is not None
        and lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    )
    options = [option.encode() for option in (*OPTIONS, f"-arch={arch}", "--ptxas-options=-v")]
    failed = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise SyntaxError(log.value.decode())
    return reports(log.value.decode())


def reports(log: str) -> dict[str, Report]:
    """The assembler's report on each kernel, from the compiler's log."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        patterns = (
            r"Used (\d+) registers",
            r"(\d+) bytes stack",
            r"(\d+) bytes spill stores",
            r"(\d+) bytes spill loads",
        )
        used, stack, stores, loads = (int(re.findall(pattern, part)[0]) for pattern in patterns)
        found[part.split("'")[0]] = Report(used, stack, stores + loads)
    return found
