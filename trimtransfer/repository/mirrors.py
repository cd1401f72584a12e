"""The mirrors that a repository names in the heads of its images: further servers from which clients may take packs.

The list is the repository's, kept in its private directory; every head carries a copy, so clients learn of it without
another request. Clients take packs only from mirrors, and check them, so a mirror needs no trust but discretion: it
sees what is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from trimtransfer.durable import space_errors, sync_directory
from trimtransfer.errors import FormatError
from trimtransfer.head import MAX_HEAD, Head, check_mirrors
from trimtransfer.names import head_name
from trimtransfer.repository.catalogues import channel_files
from trimtransfer.repository.intent import clean_up, repository_lock
from trimtransfer.repository.reading import image_names, read_head, require_repository
from trimtransfer.store import DirectoryStore

_FILE: Final = "mirrors.json"
_MOST: Final = 4096


def read_mirrors(store: DirectoryStore) -> tuple[str, ...]:
    """Return the mirrors that new heads name; ``FormatError`` if the list is damaged."""
    path = store.private(_FILE)
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
    except FileNotFoundError:
        return ()
    try:
        urls = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(str(path), 0, "a JSON list of URLs; name the mirrors again", str(error)[:80]) from error
    if len(data) > _MOST or not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise FormatError(str(path), 0, "a JSON list of URLs; name the mirrors again", "something else")
    return check_mirrors(urls)


def set_mirrors(repository: str | os.PathLike[str], urls: Sequence[str]) -> int:
    """Make these the repository's mirrors, in every head and for versions to come; return the number of images.

    Raises:
        FormatError: a URL that cannot be one, too many, or a damaged head.
        NotFound: there is no repository.
        Locked: another process writes to it.
        NoSpace: the disk is full.
    """
    mirrors = check_mirrors(list(dict.fromkeys(url.rstrip("/") for url in urls)))
    store = DirectoryStore(repository)
    require_repository(store)
    with space_errors(store.path), repository_lock(store, "naming mirrors"):
        clean_up(store)
        path = store.private(_FILE)
        staged = path.with_name(_FILE + ".new")
        staged.write_text(json.dumps(list(mirrors)))
        os.replace(staged, path)
        sync_directory(path.parent)
        images = image_names(store)
        for image in images:
            head = read_head(store, image)
            if head.mirrors != mirrors:
                store.put(head_name(image), replace(head, mirrors=mirrors).to_bytes())
            for name in channel_files(store, image):
                head = Head.from_bytes(store.read(name, limit=MAX_HEAD))
                store.put(name, replace(head, mirrors=mirrors).to_bytes())
        return len(images)
