"""Wheel hook: compiles the native module and tags the wheel for the stable ABI of CPython 3.11 and later."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds ``trimtransfer/_native`` to wheels; an editable install gets it beside the sources."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, add the result to the wheel and set the wheel's tag."""
        root = Path(self.root)
        sys.path.insert(0, str(root / "native"))
        from build_native import build

        editable = version == "editable"
        built = build(root if editable else root / "build" / "native")
        if not editable:
            build_data["force_include"][str(built)] = f"trimtransfer/{built.name}"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            python = f"cp{sys.version_info.major}{sys.version_info.minor}"
            build_data["tag"] = f"{python}-{python}t-{platform}"
        else:
            build_data["tag"] = f"cp311-abi3-{platform}"
