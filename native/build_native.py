"""Builds the compiled module ``trimtransfer._native`` with cffi in API mode.

The declarations that Python may call are the ones between the two ``cffi`` marks of each header in this folder, so
that a prototype is written once. The build happens in a temporary directory with absolute paths: inside the project
the build tool underneath cffi would read ``pyproject.toml`` and refuse its two packages.

Run as a program it builds the module into ``trimtransfer/`` (an editable install does the same).
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI, VerificationError

NATIVE = Path(__file__).resolve().parent
MODULE = "trimtransfer._native"
FLAGS = ["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-fno-strict-aliasing"]
REMEDY = "Needed are a C compiler and the headers of C and of Python; on Debian: apt install gcc libc6-dev python3-dev"


def declarations() -> str:
    """Return the C declarations that cffi exposes: the marked part of every header, in name order."""
    parts = []
    for header in sorted(NATIVE.glob("*.h")):
        parts += re.findall(r"/\* cffi: begin \*/(.*?)/\* cffi: end \*/", header.read_text(), re.DOTALL)
    return "\n".join(parts)


def build(target: Path, *, extra_flags: list[str] | None = None) -> Path:
    """Compile the module into the directory ``target`` (holding ``trimtransfer/``) and return the file's path."""
    headers = [h.name for h in sorted(NATIVE.glob("*.h")) if "cffi: begin" in h.read_text()]
    ffi = FFI()
    ffi.cdef(declarations())
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    ffi.set_source(
        MODULE,
        "".join(f'#include "{name}"\n' for name in headers),
        sources=[str(path) for path in sorted(NATIVE.glob("*.c"))],
        include_dirs=[str(NATIVE)],
        extra_compile_args=[] if os.name == "nt" else FLAGS + (extra_flags or []),
        py_limited_api=not free_threaded,
    )
    with tempfile.TemporaryDirectory() as scratch:
        here = os.getcwd()
        os.chdir(scratch)
        try:
            built = Path(ffi.compile(tmpdir=scratch, verbose=bool(os.environ.get("TRIMTRANSFER_BUILD_VERBOSE"))))
        except VerificationError as error:
            raise SystemExit(f"{error}\n{REMEDY}") from None
        finally:
            os.chdir(here)
        destination = target / "trimtransfer" / built.name
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Never overwrite in place: a process that has the old module mapped would see its pages change.
        fresh = destination.with_suffix(".new")
        fresh.write_bytes(built.read_bytes())
        fresh.chmod(0o755)
        fresh.replace(destination)
    return destination


if __name__ == "__main__":
    print(build(NATIVE.parent, extra_flags=sys.argv[1:]))
