"""What the compiled module offers; ``native.py`` alone imports it and gives its functions their types."""

from typing import Any

from cffi import FFI

ffi: FFI
lib: Any
