"""Commands on a repository: publish, delta, ls and show are here, the others have modules of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from trimtransfer.cli.arguments import HELP_OPTIONS, VERSION_MESSAGE, local_paths, name_of
from trimtransfer.cli.bucket import pull, push, reach_buckets
from trimtransfer.cli.bundle import bundle, bundle_text, describe_bundle, open_repository
from trimtransfer.cli.diff import diff
from trimtransfer.cli.estimate import estimate
from trimtransfer.cli.keys import keys, timestamp
from trimtransfer.cli.mirrors import mirrors
from trimtransfer.cli.output import EXIT_CODES, Output, count_text, output_options, size_text
from trimtransfer.cli.profile import profile, source_text
from trimtransfer.cli.signing import keys_option, take_keys
from trimtransfer.cli.upkeep import UPKEEP
from trimtransfer.cli.upload import drop_upload_options, is_server, publish_to_server, upload_options
from trimtransfer.cli.verify import verify
from trimtransfer.cli.versions import named, remarks

if TYPE_CHECKING:
    from trimtransfer.repository.deltasmade import DeltaReport
    from trimtransfer.repository.listing import ImageSummary
    from trimtransfer.repository.publication import PublishReport
    from trimtransfer.repository.reading import VersionDetails
    from trimtransfer.repository.trim import TrimmedVolume

_LEVEL: Final = 16
_MAX_LEVEL: Final = 22


_REPOSITORY: Final = click.Path(path_type=str)


@click.group(name="repo", context_settings=HELP_OPTIONS, epilog=f"Exit codes: {EXIT_CODES}.")
@click.version_option(package_name="trimtransfer", message=VERSION_MESSAGE)
def repo() -> None:
    """Publish disk images to a repository, and look after it.

    A repository is a plain directory. Any web server that serves it can serve clients: nothing runs on the server. Or
    it is in an object store, s3://bucket/prefix (see `push`).

    \b
    First steps:
      medv-repo publish /srv/images debian.img --image debian --version 12.1
      medv-repo ls /srv/images
      medv-sync https://host/images debian        (on a client)
    """


@repo.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=str)
)
@click.option(
    "--image", required=True, callback=name_of("image"), metavar="NAME", help="The image's name, such as debian-12."
)
@click.option(
    "--version", required=True, callback=name_of("version"), metavar="V", help="The new version's name, such as 12.1."
)
@click.option(
    "--parent", callback=name_of("version"), metavar="V", help="Version to compare with.  [default: the newest]"
)
@click.option(
    "--like", multiple=True, callback=name_of("image"), metavar="IMAGE", help="Share content with this image, too."
)
@click.option(
    "--level",
    type=click.IntRange(1, _MAX_LEVEL),
    default=_LEVEL,
    show_default=True,
    help="zstd level. 19 saves half a per cent and takes a third longer; 6 is 10 % larger and eight times faster.",
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "disk", "bytes"]),
    default="auto",
    show_default=True,
    help="How content is cut: as a disk image, or at any byte. auto: by partition table or file system.",
)
@click.option(
    "--format",
    type=click.Choice(["auto", "raw", "vhd", "vhdx", "qcow2", "vmdk"]),
    default="auto",
    show_default=True,
    help="What FILE is. raw: its bytes as they are. A disk over a base, or in several files, must be named.",
)
@click.option("--flat", is_flag=True, help="Also record the whole file's plain BLAKE3, as b3sum prints it.")
@click.option(
    "--delta/--no-delta",
    "deltas",
    default=True,
    help="Make deltas from the parent: clients that have it fetch half as much or less.  [default: --delta]",
)
@click.option(
    "--delta-from",
    multiple=True,
    callback=name_of("version"),
    metavar="V",
    help="Make deltas from this version, too. May be given several times.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    callback=name_of("profile"),
    metavar="NAME",
    help="Make deltas from the files of this host profile, too (see `profile`). May be given several times.",
)
@click.option(
    "--solid",
    is_flag=True,
    help="Make solid units, too: a first download takes a quarter less, the repository nearly twice the room.",
)
@click.option(
    "--trim",
    is_flag=True,
    help="Blank the free blocks of clean file systems (deleted files' remains too); nothing in use changes.",
)
@click.option(
    "--label", "labels", multiple=True, callback=name_of("label"), metavar="L", help="Give the version this label."
)
@click.option("--note", default="", metavar="TEXT", help="A note on the version, at most 1,000 characters.")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    callback=name_of("channel"),
    metavar="NAME",
    help="Let this channel stand for it (see `channel`), such as test. May be given several times.",
)
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads that compress.  [default: all cores]")
@keys_option
@upload_options
@output_options
def publish(
    output: Output, /, repository: str, files: tuple[str, ...], image: str, kind: str, format: str, **options: Any
) -> None:
    """Make FILE the next version of an image in the repository REPO; several FILEs, if the machine has several disks.

    FILE is a disk image, raw (holes are not read) or VHD, VHDX, qcow2 or VMDK, of which the guest's content is
    published; any other file; or a block device. Nothing may write to it meanwhile.
    REPO is a directory, made if missing. Only content that the image's newest version lacks is stored; and deltas, from
    which clients that have that version make most of it.

    With --trim, what the clean file systems of the image (ext2/3/4, NTFS, FAT, XFS; with or without partitions) mark
    free is published as zeros. Before, it is proven that all files and structures stay as they are. A file system that
    is not clean, or not known, is published as it is, with a warning.

    Before, the image is looked at for what ruins reuse (compressed or encrypted disks, swap, remains of deleted files,
    file systems made anew, ...); what is found is a warning with a remedy. `estimate` tells it without publishing.

    The new version appears all at once, at the very end. Interrupted or failed, nothing is published and the command
    can be run again. A published version never changes. Its date is now, or SOURCE_DATE_EPOCH of the environment.
    Where REPO is signed (`keys`), the publisher's and the online keys sign it; without them nothing is begun.

    REPO may be the URL of a server (`medv-repo serve`) that lets you publish this image. Then all work is done here;
    only the packs that the server lacks are sent, it checks them, and the version appears all at once. Interrupted, by
    whatever, the same command goes on: nothing is sent twice. What you show the server is said as for medv-sync.

    \b
    Examples:
      medv-repo publish /srv/images debian.img --image debian --version 12.1
      medv-repo publish https://images.example.org/ win.img --image win10 --version 2026-12 --token-file ci.token
      medv-repo publish /srv/images win.img --image win11-fr --version 1 --like win11-en --level 19
      medv-repo publish /srv/images system.vhdx data.vhdx --image finance --version 7
    """
    from trimtransfer.chunk import Kind
    from trimtransfer.repository.publish import publish as run

    options["kind"] = None if kind == "auto" else Kind[kind.upper()]
    options["format"] = None if format == "auto" else format
    if is_server(repository):
        publish_to_server(output, repository, image, options.pop("version"), files, options, _published)
        return
    drop_upload_options(options)
    report = run(
        repository,
        files[0],
        disks=files[1:],
        image=image,
        progress=output.progress,
        keys=take_keys(options),
        **options,
    )
    disks = (report, *report.disks)
    for disk, volume in [(one, volume) for one in disks for volume in one.trimmed]:
        if volume.problem:
            name = f"{disk.image}, {volume.name}" if report.disks else volume.name
            output.warn(f"not trimmed: {name}{_kind_text(volume)}: {volume.problem}")
    for advice in (advice for disk in disks for advice in disk.advice):
        output.warn(str(advice))
    output.result(report.to_dict(), "\n".join(map(_published, disks)))


@repo.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.option("--image", required=True, callback=name_of("image"), metavar="NAME", help="The image.")
@click.option("--from", "base", callback=name_of("version"), metavar="V", help="The version that clients have.")
@click.option("--profile", callback=name_of("profile"), metavar="NAME", help="Or the profile of their host files.")
@click.option("--solid", is_flag=True, help="Or nothing: solid units, for first downloads anywhere.")
@click.option("--remove", is_flag=True, help="Take the solid units of the version away again.")
@click.option(
    "--tree",
    "trees",
    multiple=True,
    callback=local_paths,
    metavar="DIR",
    help="Where a tree of the profile is now; in their order, all of them.  [default: where it was recorded]",
)
@click.option(
    "--to",
    "version",
    callback=name_of("version"),
    metavar="V",
    help="The version that they want.  [default: the newest]",
)
@click.option(
    "--level",
    type=click.IntRange(1, _MAX_LEVEL),
    help=f"zstd level.  [default: {_LEVEL}; of solid units 19]",
)
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads, at most 4 of them.  [default: all cores]")
@keys_option
@output_options
def delta(
    output: Output,
    /,
    repository: str,
    image: str,
    base: str | None,
    profile: str | None,
    solid: bool,
    remove: bool,
    trees: Any,
    level: int | None,
    **options: Any,
) -> None:
    """Make the deltas between two published versions of an image, so that clients of the one fetch less for the other;
    or from the files of a host profile, for first downloads on such hosts.

    With --solid, all content of the version is stored once more in solid units: long stretches, compressed as a whole
    and by what is inside of gzip and zip files. First downloads by whoever has nothing fetch a quarter less or better.
    Updates do not need them, and they take nearly as much room as the first version itself: make them for a version
    that many will start from, and take them away (--remove) from one that nobody starts from any more.

    `publish` makes those from the parent by itself. Deltas are optional: deleting the file `from-V.bin` or
    `host-NAME.bin` of a version takes them away again.

    \b
    Examples:
      medv-repo delta /srv/images --image debian --from 12.1 --to 12.4
      medv-repo delta /srv/images --image debian --profile debian-12
      medv-repo delta /srv/images --image debian --solid
    """
    if (base is not None) + (profile is not None) + solid != 1 or (trees and profile is None):
        raise click.UsageError("name either --from V, or --profile NAME (with --tree where it was moved), or --solid")
    if remove and not solid:
        raise click.UsageError("--remove goes with --solid; the deltas of a profile go with `profile --remove`")
    if base is not None and base == options["version"]:
        raise click.UsageError(f"--from and --to are both {base}: name two versions")
    options = {"progress": output.progress, "level": level or _LEVEL, "keys": take_keys(options), **options}
    if solid:
        from trimtransfer.cli.solid import make_or_remove

        make_or_remove(output, repository, image, remove=remove, **{**options, "level": level}, tell=_made)
        return
    from trimtransfer.repository.deltas import add_deltas
    from trimtransfer.repository.hostdeltas import add_host_deltas

    if base is not None:
        report = add_deltas(repository, image, base=base, **options)
    else:
        report = add_host_deltas(repository, image, profile=str(profile), trees=trees, **options)
    output.result(report.to_dict(), "\n".join(map(_made, (report, *report.disks))))


repo.add_command(profile)


@repo.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@output_options
def ls(output: Output, repository: str) -> None:
    """List the images of the repository (or bundle) REPO and their versions."""
    from trimtransfer.repository.listing import list_images

    store = open_repository(repository)
    images = list_images(store)
    facts = {"images": [image.to_dict() for image in images], **describe_bundle(store)}
    output.result(facts, _listed(images) + bundle_text(store))


@repo.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.argument("image", metavar="IMAGE", callback=name_of("image"))
@click.argument("version", metavar="[VERSION]", callback=name_of("version"), required=False)
@output_options
def show(output: Output, repository: str, image: str, version: str | None) -> None:
    """Show one version (its name or a label) of IMAGE in REPO (a repository or bundle), the newest by default: what it
    is and what a first download of it costs."""
    from trimtransfer.repository.reading import delta_bases, describe, host_profiles
    from trimtransfer.repository.solid import solid_download

    store = open_repository(repository)
    details = describe(store, image, named(store, image, version))
    facts: list[dict[str, Any]] = []
    texts: list[str] = []
    for disk in (details, *details.disks):
        bases = delta_bases(store, disk.image, disk.version)
        profiles = host_profiles(store, disk.image, disk.version)
        told = {
            "deltas_from": bases,
            "deltas_from_profiles": profiles,
            "solid_download_bytes": solid_download(store, disk),
        }
        facts.append({**disk.to_dict(), **told})
        texts.append(_shown(disk, [*bases, *map(source_text, profiles)], facts[-1]["solid_download_bytes"]))
    said, text = remarks(store, image, details.version)
    whole = {**facts[0], **said, "disks": facts[1:], **describe_bundle(store)}
    output.result(whole, "\n".join(texts) + text + bundle_text(store))


repo.add_command(verify)


for command in (bundle, diff, estimate, mirrors, keys, timestamp, push, pull, *UPKEEP):
    repo.add_command(command)
reach_buckets(repo)


def _published(report: PublishReport) -> str:
    after = f", after {report.parent}" if report.parent else ""
    found = report.recognised if report.format == "raw" else f"{report.format}: {report.recognised}"
    lines = [
        f"Published {report.image} {report.version} ({found}, {size_text(report.length)}{after})",
        f"  zeros      {size_text(report.zero_bytes):>10}",
        f"  known      {size_text(report.known_bytes):>10}  {count_text(report.known_chunks, 'chunk')}",
        f"  repeated   {size_text(report.repeated_bytes):>10}",
        f"  new        {size_text(report.new_bytes):>10}  {count_text(report.new_chunks, 'chunk')}",
    ]
    for volume in report.trimmed:
        if not volume.problem:
            gain, kept = size_text(volume.blanked_bytes), f"{size_text(volume.kept_bytes)} in use proven unchanged"
            place = f"free in {volume.name}{_kind_text(volume)}, {gain} of it data"
            files = count_text(volume.files, "file")
            lines.append(f"  trimmed    {size_text(volume.free_bytes):>10}  {place}; {files}, {kept}")
    if report.again_bytes:
        lines.append(f"  known, stored again to keep downloads compact: {size_text(report.again_bytes)}")
    stored = f"{size_text(report.stored_bytes)} in {count_text(report.packs, 'pack')}"
    lines.append(f"Added {stored}, {size_text(report.metadata_bytes)} of metadata; {report.seconds:.1f} s")
    lines += [_made(deltas) for deltas in report.deltas]
    lines.append(f"Digest {report.digest}")
    if report.flat:
        lines.append(f"b3sum  {report.flat}")
    return "\n".join(lines)


def _made(report: DeltaReport) -> str:
    base = report.base or source_text(report.profile)
    if report.problem:
        return f"No deltas from {base}: {report.problem}"
    if not report.units:
        return f"No deltas from {base}: plain packs are as small"
    made = f"{size_text(report.content_bytes)} of the {size_text(report.new_bytes)} that are new"
    saved = f"{size_text(report.stored_bytes)} instead of {size_text(report.plain_bytes)}"
    inside = f" ({size_text(report.wrapped_bytes)} by looking into compressed files)" if report.wrapped_units else ""
    again = f"; clients compress again for {report.tool_seconds:.1f} s of a core" if report.tool_units else ""
    return f"Deltas from {base}: {made}{inside} in {saved}{again}; {report.seconds:.1f} s"


def _kind_text(volume: TrimmedVolume) -> str:
    return f" ({volume.file_system})" if volume.file_system else ""


def _listed(images: list[ImageSummary]) -> str:
    lines = []
    for image in images:
        lines.append(image.image)
        for version in image.versions:
            if version.problem:
                lines.append(f"  {version.version or 'head':<20} DAMAGED: {version.problem}")
                continue
            newest = "  newest" if version.newest else ""
            size = size_text(version.length)
            lines.append(f"  {version.version:<20} {_when(version.created)} {size:>10}  {version.digest[:16]}{newest}")
    return "\n".join(lines) or "no images"


def _shown(details: VersionDetails, bases: list[str], solid: int | None) -> str:
    by_units = f"; {size_text(solid)} by solid units" if solid is not None else ""
    newest = ", the newest version" if details.newest else ""
    lines = [
        f"{details.image} {details.version}{newest}",
        f"  published   {_when(details.created)} from {details.format}, number {details.sequence}"
        + (f", after {details.parent}" if details.parent else ""),
        f"  size        {size_text(details.length)}, {size_text(details.zero_bytes)} of it zeros",
        f"  kind        {details.kind}, {count_text(len(details.segments), 'segment')}, "
        f"{count_text(details.regions, 'region')}",
        f"  chunks      {details.chunks:,}",
        f"  stored in   {count_text(details.packs, 'pack')} of {size_text(details.pack_bytes)}",
        f"  download    {size_text(details.download_bytes)} with nothing at hand "
        f"({count_text(details.frames, 'frame')}, {size_text(details.metadata_bytes)} of metadata){by_units}",
        f"  deltas      {'from ' + ', '.join(bases) if bases else 'none'}",
        f"  digest      {details.digest}",
    ]
    if details.flat:
        lines.append(f"  b3sum       {details.flat}")
    return "\n".join(lines)


def _when(created: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(created)) + " UTC"
