"""``python -m trimtransfer``: all commands of the engine."""

from __future__ import annotations

import copy

import click

from trimtransfer.cli.arguments import HELP_OPTIONS, VERSION_MESSAGE
from trimtransfer.cli.index import index
from trimtransfer.cli.repo import repo
from trimtransfer.cli.sync import plan_command, sync_command
from trimtransfer.cli.verifyimage import verify_image_command


@click.group(name="trimtransfer", context_settings=HELP_OPTIONS)
@click.version_option(package_name="trimtransfer", message=VERSION_MESSAGE)
def main() -> None:
    """Delta transfer of disk images: publish them to a repository, and bring local copies up to date."""


_sync = copy.copy(sync_command)
_sync.hidden = False  # medv-sync shows it as itself, here it is one command of several
for command in (_sync, plan_command, verify_image_command, index, repo):
    main.add_command(command)
