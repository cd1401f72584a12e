"""``python -m trimtransfer``: all commands of the engine."""

from __future__ import annotations

import click

from trimtransfer.cli.index import index
from trimtransfer.cli.repo import repo
from trimtransfer.cli.sync import plan_command, sync_command, verify_command


@click.group(name="trimtransfer")
def main() -> None:
    """Delta transfer of disk images: publish them to a repository, and bring local copies up to date."""


sync_command.hidden = False
for command in (sync_command, plan_command, verify_command, index, repo):
    main.add_command(command)
