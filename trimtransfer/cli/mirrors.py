"""The command that names the mirrors of a repository."""

from __future__ import annotations

from typing import Any

import click

from trimtransfer.cli.output import Output, count_text, output_options
from trimtransfer.cli.signing import keys_option, take_keys


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option("--none", is_flag=True, help="Name no mirrors any more.")
@keys_option
@output_options
def mirrors(output: Output, /, repository: str, urls: tuple[str, ...], none: bool, **options: Any) -> None:
    """Name the mirrors of the repository REPO: servers that hold a copy of its directory `packs`. Or show them.

    Clients learn of them whenever they sync, and take content from whichever serves them best; all
    else comes from the repository's own server. Everything is verified, so a mirror cannot do harm; it sees which
    packs a client lacks. One that lags behind, fails or lies is passed over. At most 4, https if the repository is.

    \b
    Examples:
      medv-repo mirrors /srv/images https://mirror.example.org/images
      medv-repo mirrors /srv/images                       (shows them)
      medv-repo mirrors /srv/images --none
    """
    from trimtransfer.errors import FormatError
    from trimtransfer.head import check_mirrors
    from trimtransfer.repository.mirrors import read_mirrors, set_mirrors
    from trimtransfer.repository.reading import require_repository
    from trimtransfer.repository.staged import is_signed
    from trimtransfer.store import DirectoryStore

    if none and urls:
        raise click.UsageError("--none stands alone")
    urls = tuple(dict.fromkeys(url.rstrip("/") for url in urls))
    try:
        check_mirrors(urls)
    except FormatError as error:
        raise click.UsageError(f"{error.got} cannot be named: {error.where} must be {error.expected}") from None
    if none or urls:
        keys = take_keys(options)
        signed = is_signed(DirectoryStore(repository))
        if signed:
            from trimtransfer.repository.renewal import check_keys, resign_images

            check_keys(repository, keys=keys)
        images = set_mirrors(repository, urls)
        if signed:
            resign_images(repository, keys=keys)
        named = read_mirrors(DirectoryStore(repository))
        text = f"{count_text(len(named), 'mirror')} named to clients of {count_text(images, 'image')}"
        output.result({"mirrors": list(named), "images": images}, text)
        return
    store = DirectoryStore(repository)
    require_repository(store)
    named = read_mirrors(store)
    output.result({"mirrors": list(named)}, "\n".join(named) or "no mirrors")
