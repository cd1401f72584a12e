"""The programs ``medv-sync`` and ``medv-repo``: the engine's commands, and the demonstration."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click

from medv.commands.doctor import doctor
from medv.commands.serve import serve
from medv.commands.sign import sign
from medv.commands.token import token
from trimtransfer.cli.output import Output, output_options
from trimtransfer.cli.repo import repo as medv_repo
from trimtransfer.cli.sync import medv_sync

__all__ = ["medv_repo", "medv_sync"]

_SMALLEST_MIB: Final = 32
_LARGEST_MIB: Final = 4096
_NEEDED: Final = ("aiofiles", "trustme", "uvicorn")
_REMEDY: Final = "the demonstration needs its server: pip install 'trimtransfer[demo]'"


for _command in (serve, token, sign, doctor):
    medv_repo.add_command(_command)


@medv_sync.command()
@click.option("--keep", metavar="DIR", type=click.Path(path_type=Path), help="Work in this new directory and keep it.")
@click.option(
    "--size",
    metavar="MIB",
    type=click.IntRange(_SMALLEST_MIB, _LARGEST_MIB),
    default=300,
    show_default=True,
    help="Take about so many MiB of this machine's files.",
)
@output_options
def demo(output: Output, keep: Path | None, size: int) -> None:
    """Show everything on a real disk image, made of this machine's own programs. Takes a minute; needs e2fsprogs.

    Makes an ext4 image of program folders, and a next version as an upgrade would make it; publishes both, serves them
    over HTTPS on loopback, syncs the first with the help of host files, the second as an update; proves the results.
    Needs no root. Without --keep nothing is left behind.
    """
    from medv.sample import SampleFailed

    if any(find_spec(name) is None for name in _NEEDED):
        raise SampleFailed(_REMEDY)
    from medv import demo as demonstration

    done = demonstration.run(keep=keep, mebibytes=size, say=output.say, progress=output.progress)
    output.result(done.to_dict(), demonstration.text(done))
