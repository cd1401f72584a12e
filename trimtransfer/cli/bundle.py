"""Bundles on the command line: making them, what a sync starts from, and the commands that look after repositories."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trimtransfer.cli.arguments import name_of, rate, repository_url, size
from trimtransfer.cli.credentials import credential_options, take_credentials
from trimtransfer.cli.output import Output, count_text, output_options, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtransfer.bundle import BundleVersion
    from trimtransfer.bundlestore import BundleStore
    from trimtransfer.repository.bundlecheck import BundleCheck
    from trimtransfer.repository.bundling import BundleReport
    from trimtransfer.store import DirectoryStore

F = TypeVar("F", bound=Callable[..., Any])

EXIT_DAMAGED = 6


@click.command()
@click.argument("repository", metavar="REPO", callback=repository_url)
@click.option(
    "--image",
    "images",
    multiple=True,
    required=True,
    callback=name_of("image"),
    metavar="NAME",
    help="The image. May be given several times, then the newest version of each is taken.",
)
@click.option(
    "--version",
    "versions",
    multiple=True,
    callback=name_of("version"),
    metavar="V",
    help="Version to take; may be given several times.  [default: the newest]",
)
@click.option(
    "--from",
    "bases",
    multiple=True,
    callback=name_of("version"),
    metavar="V0",
    help="Take only what machines lack that have this version; may be given several times: any of these versions.",
)
@click.option(
    "--from-image-file",
    "files",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True, dir_okay=False, path_type=str),
    help="Take only what machines lack that have this image file.",
)
@click.option(
    "--deltas",
    is_flag=True,
    help="Take the deltas from V0 instead of what they make: smaller, but only for machines that synced V0 by "
    "medv-sync and have it as it was.",
)
@click.option("-o", "--output", "path", required=True, metavar="FILE", help="The bundle to write.")
@click.option(
    "--split",
    callback=size,
    metavar="SIZE",
    help="Write parts of this size, FILE.001 and so on.  [default: only where files must be shorter, as on FAT32]",
)
@click.option("--connections", type=click.IntRange(1, 16), default=4, show_default=True, help="Requests at a time.")
@click.option("--limit-rate", callback=rate, metavar="R", help="Most bytes per second, such as 500k or 2.5M.")
@click.option(
    "--ca-cert",
    metavar="FILE",
    type=click.Path(exists=True),
    help="Certificate authorities to trust instead of the system's.",
)
@credential_options
@output_options
def bundle(
    output: Output,
    /,
    repository: str,
    images: tuple[str, ...],
    versions: tuple[str, ...],
    bases: tuple[str, ...],
    files: tuple[str, ...],
    deltas: bool,
    path: str,
    split: int | None,
    **options: Any,
) -> None:
    """Write what machines need for a version of an image into one file, for USB sticks and prestaging.

    REPO is a repository: a directory or https://..., so a branch office can make its own bundle. Without --from the
    bundle serves any machine; with it, machines that have one of these versions, and is as small as that update.

    On the machines `medv-sync --from FILE IMAGE` syncs from it without any network; `medv-sync URL IMAGE --seed FILE`
    fetches only what it lacks (of parts, name the first). A bundle named *.bundle in the folder of the image is found
    by itself.

    Everything is verified before it is written and read back from the disk. Interrupted, run the same command again.

    \b
    Examples:
      medv-repo bundle /srv/images --image debian -o /media/stick/debian.bundle
      medv-repo bundle https://host/images --image debian --from 12.1 -o debian-12.2.bundle
    """
    from trimtransfer.repository.bundleplan import Wanted

    if len(images) > 1 and (versions or bases):
        raise click.UsageError("--version and --from need a single --image")
    if deltas and (len(bases) != 1 or files):
        raise click.UsageError("--deltas needs one --from")
    wanted = [Wanted(image, versions, bases, deltas) for image in images]
    options["credentials"] = take_credentials(options)
    report = _make(output, repository, path, wanted, files, split, options)
    output.result(report.to_dict(), _made(report))


def _make(
    output: Output, repository: str, path: str, wanted: Any, files: Sequence[str], split: int | None, options: Any
) -> BundleReport:
    from contextlib import closing

    from trimtransfer.assembly.remote import open_store
    from trimtransfer.repository.bundling import make_bundle

    with closing(open_store(repository, cancel=None, on_bytes=_ignore, **options)) as store:
        return make_bundle(store, path, wanted, files=files, split=split, progress=output.progress)


def _ignore(count: int) -> None:
    """Bytes that arrive are counted when they are written."""


def source_arguments(function: F) -> F:
    """Decorate a command with what it syncs from: URL and IMAGE, or ``--from BUNDLE`` and IMAGE.

    It gets ``url``, and ``image``, which is None where the bundle's only one is meant.
    """

    @click.argument("url", metavar="URL", required=False)
    @click.argument("image", metavar="IMAGE", required=False)
    @click.option(
        "--from",
        "bundle",
        metavar="BUNDLE",
        help="Sync from this bundle instead of a URL, without any network (in parts: name the first, or the name "
        "without .001). IMAGE may be left out where the bundle has one only.",
    )
    @functools.wraps(function)
    def run(*args: Any, url: str | None, image: str | None, bundle: str | None, **options: Any) -> Any:
        if bundle is not None and image is not None:
            raise click.UsageError("a URL or --from; a bundle that saves bytes beside a server is named with --seed")
        if bundle is not None:
            url, image = bundle, url
        elif url is None or image is None:
            raise click.UsageError(f"Missing argument '{'URL' if url is None else 'IMAGE'}'.")
        else:
            url = repository_url(*_no_context(), url)
        if image is not None:
            name_of("image")(*_no_context(), image)
        return function(*args, url=url, image=image, **options)

    return run  # type: ignore[return-value]  # the arguments are others


def _no_context() -> tuple[click.Context, click.Parameter]:
    context = click.get_current_context()
    return context, context.command.params[0]


def only_image(url: str) -> str:
    """Return the name of the one image in a bundle; ``TargetRefused`` if it has several, and what opening raises."""
    from contextlib import closing

    from trimtransfer.bundlestore import BundleStore
    from trimtransfer.errors import TargetRefused

    with closing(BundleStore(url)) as store:
        images = sorted({version.image for version in store.versions})
    if len(images) > 1:
        raise TargetRefused(url, f"has several images, name one: {', '.join(images)}")
    return images[0]


def open_repository(path: str) -> DirectoryStore | BundleStore:
    """Return the store of a directory, bundle or object store; ``NotFound`` for a directory with nothing published."""
    from trimtransfer.bundlestore import BundleStore, part_paths
    from trimtransfer.fetch.account import is_s3
    from trimtransfer.repository.reading import require_repository
    from trimtransfer.store import DirectoryStore

    if is_s3(path):
        from trimtransfer.bucket.store import BucketStore

        return BucketStore(path)
    if part_paths(path):
        return BundleStore(path, partial=True)
    store = DirectoryStore(path)
    require_repository(store)
    return store


def check(output: Output, store: BundleStore, *, quick: bool) -> None:
    """Check a bundle and print the result; exit code 6 if it is damaged."""
    from trimtransfer.repository.bundlecheck import check_bundle
    from trimtransfer.watch import Watch

    report = check_bundle(store, quick=quick, watch=Watch(output.progress))
    output.result(report.to_dict(), _checked(report))
    if report.damage:
        raise SystemExit(EXIT_DAMAGED)


def describe_bundle(store: object) -> dict[str, Any]:
    """Return what ``ls`` and ``show`` tell of a bundle besides its versions, as an object for JSON; none for others."""
    from trimtransfer.bundlestore import BundleStore

    if not isinstance(store, BundleStore):
        return {}
    versions = [
        {"image": one.image, "version": one.version, "from": list(one.bases), "deltas": one.deltas}
        for one in store.versions
    ]
    facts = {"length": store.length, "parts": len(store.parts), "versions": versions, "problem": store.problem}
    return {"bundle": facts}


def bundle_text(store: object) -> str:
    """Return the same as lines for people."""
    from trimtransfer.bundlestore import BundleStore

    if not isinstance(store, BundleStore):
        return ""
    lines = [f"\nA bundle of {size_text(store.length)} in {count_text(len(store.parts), 'file')}"]
    lines += [f"  {one}: {_starts(one)}" for one in store.versions]
    return "\n".join([*lines, *([f"  DAMAGED: {store.problem}"] if store.problem else [])])


def _starts(version: BundleVersion) -> str:
    bases = [*version.bases, *(["the image file that it was made for"] if version.files else [])]
    if version.deltas:
        return f"deltas, for machines that synced {bases[0]} and have it as it was"
    return "for any machine" if version.complete else f"for machines that have {' or '.join(bases)}"


def _made(report: BundleReport) -> str:
    files = count_text(len(report.files), "file")
    lines = [f"Bundled {', '.join(str(one) for one in report.versions)} in {size_text(report.length)}, {files}:"]
    lines += [f"  {file}" for file in report.files]
    lines += [f"{one}: {_starts(one)}" for one in report.versions]
    if report.resumed_bytes:
        lines.append(f"{size_text(report.resumed_bytes)} were there from an interrupted run")
    return "\n".join([*lines, f"Verified, and read back from the disk; {report.seconds:.1f} s"])


def _checked(report: BundleCheck) -> str:
    versions = ", ".join(str(one) for one in report.versions)
    lines = [f"Checked {versions} in {count_text(report.objects, 'object')} ({size_text(report.read_bytes)} read)"]
    for damage in report.damage:
        lines += [f"DAMAGED {damage.name}: {damage.problem}", f"  remedy: {damage.remedy}"]
    return "\n".join([*lines, f"Damaged: {count_text(len(report.damage), 'object')}" if report.damage else "No damage"])
