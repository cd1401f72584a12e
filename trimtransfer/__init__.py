"""Delta transfer of disk images: chunking, publishing, and verified assembly from what is already here.

The names below are loaded when they are first used, so importing the package costs nothing. Everything else is
imported from the module that defines it; errors are in :mod:`trimtransfer.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trimtransfer.assembly.preview import plan
    from trimtransfer.assembly.sync import sync
    from trimtransfer.assembly.verify import verify_image
    from trimtransfer.bytechunker import ByteChunker
    from trimtransfer.chunk import REGION_SIZE, Kind, chunk_digest
    from trimtransfer.chunker import cut, cut_and_digest
    from trimtransfer.errors import TrimTransferError
    from trimtransfer.index.host import HostIndex
    from trimtransfer.manifest import Manifest
    from trimtransfer.match import BlockTable
    from trimtransfer.repository.publish import publish
    from trimtransfer.table import Table

__all__ = [
    "REGION_SIZE",
    "BlockTable",
    "ByteChunker",
    "HostIndex",
    "Kind",
    "Manifest",
    "Table",
    "TrimTransferError",
    "chunk_digest",
    "cut",
    "cut_and_digest",
    "plan",
    "publish",
    "sync",
    "verify_image",
]

_HOMES: Final = {
    "REGION_SIZE": "chunk",
    "BlockTable": "match",
    "ByteChunker": "bytechunker",
    "HostIndex": "index.host",
    "Kind": "chunk",
    "Manifest": "manifest",
    "Table": "table",
    "TrimTransferError": "errors",
    "chunk_digest": "chunk",
    "cut": "chunker",
    "cut_and_digest": "chunker",
    "plan": "assembly.preview",
    "publish": "repository.publish",
    "sync": "assembly.sync",
    "verify_image": "assembly.verify",
}


def __getattr__(name: str) -> Any:
    """Load a name of ``__all__`` from the module that defines it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
