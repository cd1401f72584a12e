"""The command that signs URLs."""

from __future__ import annotations

import os
import secrets
import time
from typing import Final

import click

from medv.commands.token import duration, show_secret
from trimtransfer.cli.output import Output, output_options

_KEY: Final = click.Path(dir_okay=False, path_type=str)


@click.command()
@click.argument("url", metavar="[URL]", required=False)
@click.option("--image", "images", multiple=True, metavar="PATTERN", help="For these images, such as win10 or 'win*'.")
@click.option("--expires", metavar="TIME", callback=duration, default="8h", show_default=True, help="Good for so long.")
@click.option("--key", "key_file", metavar="FILE", type=_KEY, envvar="MEDV_URL_KEY", help="The key to sign with.")
@click.option("--label", default="", metavar="NAME", help="Whom it is for; the server's log tells it.")
@click.option(
    "--secure-link", is_flag=True, help="In the shape that nginx checks by itself (secure_link), for one image."
)
@click.option("--new-key", metavar="FILE", type=_KEY, help="Make a key in a new file, and end.")
@output_options
def sign(
    output: Output,
    /,
    url: str | None,
    images: tuple[str, ...],
    expires: float,
    key_file: str | None,
    label: str,
    secure_link: bool,
    new_key: str | None,
) -> None:
    """Print the URL of a repository with a signature that lets whoever has it read some images, for a while.

    medv-sync takes it as it is, keeps its query for all that it fetches, and shows it nowhere. The server knows the key
    ([signed_urls] key_files). A signature counts until 60 s after its end, because clocks differ; it cannot be revoked
    but by taking the key away. With --secure-link nginx or a CDN checks it without any program of ours; such a check
    knows images, but not which packs belong to them (see `medv-repo serve --print-nginx secure-link`).

    \b
    Examples:
      medv-repo sign --new-key /etc/medv/url.key
      medv-repo sign https://images.example.org/ --image win10 --expires 8h --key /etc/medv/url.key
    """
    if new_key is not None:
        _make_key(new_key)
        output.result({"key": new_key}, f"Made {new_key}; name it in [signed_urls] key_files, first")
        return
    if url is None or key_file is None or not images:
        raise click.UsageError("name URL, --image and --key (or --new-key)")
    from medv.gateway import signedurls
    from medv.gateway.configured import read_secret

    key, end = read_secret(key_file, "--key"), int(time.time() + expires)
    try:
        if secure_link:
            if len(images) != 1 or "*" in images[0]:
                raise ValueError("--secure-link is for exactly one image, without *")
            query = signedurls.secure_link(end, images[0], key.decode("ascii", "strict"))
        else:
            query = signedurls.sign(signedurls.Permit(images, end, label), key)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    signed = signedurls.add_query(url, query)
    show_secret(output, {"url": signed, "expires": end, "images": list(images)}, signed)


def _make_key(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
