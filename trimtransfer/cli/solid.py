"""The solid units of a version: making them, and taking them away."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trimtransfer.cli.output import Output, count_text, size_text

if TYPE_CHECKING:
    from trimtransfer.repository.deltasmade import DeltaReport


def make_or_remove(
    output: Output,
    repository: str,
    image: str,
    *,
    remove: bool,
    level: int | None,
    version: str | None,
    tell: Callable[[DeltaReport], str],
    **options: Any,
) -> None:
    """Make the solid units of a version, or take them away, and print what was done; ``tell`` puts it into words."""
    from trimtransfer.repository.solid import SOLID_LEVEL, add_solid, remove_solid

    if remove:
        disks = remove_solid(repository, image, version=version, keys=options["keys"])
        text = f"Removed the solid units of {count_text(disks, 'disk')}" if disks else "There are no solid units"
        output.result({"image": image, "removed": disks > 0, "disks": disks}, text)
        return
    report = add_solid(repository, image, version=version, level=level or SOLID_LEVEL, **options)
    made = (report, *report.disks)
    added = sum(disk.added_bytes for disk in made)
    room = f"The repository takes {size_text(added)} more. When nobody starts from this version any more: `--remove`."
    output.result(report.to_dict(), "\n".join([*map(tell, made), room]))
