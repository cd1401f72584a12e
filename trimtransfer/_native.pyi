"""What the compiled module offers; ``native.py`` alone imports it and gives its functions their types."""

from typing import Any

ffi: Any
lib: Any
