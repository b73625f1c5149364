"""CUDA C++ on the CPU: a stand-in for CuPy's RawModule by g++ and simulator.h. Kernels run on NumPy's memory."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("simulator.h")
CACHE = Path(tempfile.gettempdir()) / f"minidiff-gpu-simulator-{os.getuid()}"
FLAGS = ("-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-w", "-fno-strict-aliasing", "-ffp-contract=off")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined")
SCALARS = {"f4": "f", "i4": "i"}
POINTERS = {"f4": "F", "f8": "D", "i4": "I"}


def preprocessed(source: str) -> str:
    """The source after macro expansion."""
    command = ["g++", "-E", "-P", "-x", "c++", "-include", str(HEADER), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def kernels_of(source: str) -> list[str]:
    """The names of all kernels, including those defined by macros."""
    marked = f"#define __launch_bounds__(...) KERNEL\n{source}"
    return re.findall(r"KERNEL\s+(\w+)\s*\(", preprocessed(marked))


def build(source: str, flags: tuple[str, ...] = ()) -> Path:
    """A shared library of the kernels, from the cache if it was built before. Raises RuntimeError without g++."""
    if shutil.which("g++") is None:
        raise RuntimeError("the GPU simulator compiles kernels with g++: install it (apt-get install g++)")
    key = hashlib.sha256("\0".join([source, HEADER.read_text(), *FLAGS, *flags]).encode()).hexdigest()[:24]
    library = CACHE / f"{key}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        exports = "\n".join([f"EXPORT({name})" for name in kernels_of(source)] + ["EXPORT_ALL\n"])
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            code, part = Path(folder, "kernels.cu"), Path(folder, "kernels.so")
            code.write_text(f'#line 1 "kernels.cu"\n{source}\n{exports}')
            command = ["g++", *FLAGS, *flags, "-x", "c++", "-include", str(HEADER), str(code), "-o", str(part)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            os.replace(part, library)
    return library


class Module:
    """The kernels of a source. `launched`: the names of all kernels that have run, of all modules."""

    launched: set[str] = set()
    order = 0  # of threads: 0 forward, 1 backward, 2 and more shuffled

    def __init__(self, source: str, flags: tuple[str, ...] = ()):
        self.loaded = ctypes.CDLL(str(build(source, flags)))
        self.loaded.simulator_error.restype = ctypes.c_char_p

    def get_function(self, name: str) -> "Kernel":
        return Kernel(self, name)


class Kernel:
    """One kernel, with CuPy's calling convention. It refuses arguments that a GPU would silently misread."""

    def __init__(self, module: Module, name: str):
        self.module, self.name, self.max_dynamic_shared_size_bytes = module, name, 48 * 1024
        self.run = getattr(module.loaded, f"launch_{name}")
        self.run.argtypes = [ctypes.c_uint] * 4 + [ctypes.c_size_t, ctypes.c_void_p]
        kinds = getattr(module.loaded, f"kinds_{name}")
        kinds.restype = ctypes.c_char_p
        self.kinds = kinds().decode()

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError(f"{self.name}: {shared_mem} bytes of shared memory exceed the limit set")
        if len(arguments) != len(self.kinds):
            raise TypeError(f"{self.name} takes {len(self.kinds)} arguments, not {len(arguments)}")
        values = [self._packed(i, a, kind) for i, (a, kind) in enumerate(zip(arguments, self.kinds, strict=True))]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self.module.loaded.simulator_order(Module.order)
        Module.launched.add(self.name)
        if self.run(*(tuple(grid) + (1, 1))[:3], block[0], shared_mem, pointers):
            raise RuntimeError(f"{self.name}: {self.module.loaded.simulator_error().decode()}")

    def _packed(self, i: int, a, kind: str):
        """The bytes of argument i. Raises TypeError if it is not of the kernel's type."""
        if isinstance(a, np.ndarray):
            if POINTERS.get(a.dtype.str[1:]) == kind:
                return ctypes.c_void_p(a.ctypes.data)
        elif a.dtype == np.uint64 and a == 0 and kind.isupper():
            return ctypes.c_void_p(0)
        elif SCALARS.get(a.dtype.str[1:]) == kind:
            return ctypes.create_string_buffer(a.tobytes(), a.nbytes)
        raise TypeError(f"{self.name}: argument {i} is {a.dtype}, the kernel takes {kind}")
