"""The commands ``keys``: who may sign a repository; and ``timestamp``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from trimtransfer.cli.arguments import name_of
from trimtransfer.cli.output import Output, output_options
from trimtransfer.cli.signing import ask_passphrase, keys_option, new_passphrase, take_keys

if TYPE_CHECKING:
    from trimtransfer.repository.drafts import Draft
    from trimtransfer.repository.keyreport import KeysReport

F = TypeVar("F", bound=Callable[..., Any])

_REPOSITORY: Final = click.Path(exists=True, file_okay=False)
_ROLES: Final = ("root", "targets", "publisher", "snapshot", "timestamp")
_ONE_ROLE: Final = click.Choice(_ROLES)
_HELP: Final = """Sign a repository, so that clients believe it whoever serves it.

Five kinds of keys (all Ed25519) share the work, so that losing one loses little:

\b
  root       says which keys count. Offline: on a stick in a safe.
  targets    says whose keys sign which image. Offline; needed once for each new image.
  publisher  signs what versions an image has: `publish` and `delta` use it.
  snapshot, timestamp
             say what is newest, for a few days at a time. Online: a timer renews them.

Whoever steals the online keys can withhold news for a while, but cannot name new content. The formats are those of TUF
(theupdateframework.io).

\b
Set up, once:
  medv-repo keys init /srv/www/images --offline /media/safe
  (give clients metadata/1.root.json by another way than this server:)
  medv-sync --root 1.root.json https://images.example.org/ win10
Each day (cron or a systemd timer; else clients refuse after a week):
  medv-repo timestamp /srv/www/images
For a new image, once:
  medv-repo keys delegate /srv/www/images win11 --offline /media/safe
A key got lost or stolen:
  medv-repo keys rotate /srv/www/images snapshot timestamp --offline /media/safe
"""


def offline_option(function: F) -> F:
    """Decorate a command with ``--offline``."""
    return click.option(
        "--offline", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the keys of root and targets.",
    )(function)  # fmt: skip


def passphrase_option(function: F) -> F:
    """Decorate a command with ``--no-passphrase``."""
    return click.option(
        "--no-passphrase", is_flag=True, help="Do not encrypt new offline keys (their medium lies in a safe)."
    )(function)


@click.group(help=_HELP)
def keys() -> None:
    """Sign a repository."""


@keys.command()
@click.argument("repository", metavar="REPO", type=click.Path(file_okay=False))
@click.option(
    "--offline", required=True, metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the keys of root and targets; not on this machine for long.",
)  # fmt: skip
@click.option("--keys", "folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for the other keys.  [default: ~/.config/medv/keys/ID]")  # fmt: skip
@click.option("--root-keys", type=click.IntRange(1, 16), default=1, show_default=True, help="Root keys to make.")
@click.option("--root-threshold", type=click.IntRange(1, 16), default=1, show_default=True, help="How many must sign.")
@click.option("--targets-keys", type=click.IntRange(1, 16), default=1, show_default=True, help="Targets keys to make.")
@click.option("--targets-threshold", type=click.IntRange(1, 16), default=1, show_default=True, help="How many must.")
@click.option("--timestamp-days", type=click.IntRange(1, 365), default=7, show_default=True,
              help="For how long a timestamp is valid: so long may news be withheld.")  # fmt: skip
@click.option("--protect-publisher", is_flag=True, help="Give the publisher's key a passphrase, too.")
@passphrase_option
@output_options
def init(
    output: Output,
    /,
    repository: str,
    offline: Path,
    folder: Path | None,
    timestamp_days: int,
    protect_publisher: bool,
    no_passphrase: bool,
    **counts: int,
) -> None:
    """Make keys for REPO, and sign all that is in it.

    The folder of the online keys must not lie in REPO, which a web server serves. Move the offline folder away
    afterwards: two copies, in two places. Whoever has no root key any more must give all clients a new root file.

    The passphrase comes from MEDV_KEY_PASSPHRASE, from the file MEDV_KEY_PASSPHRASE_FILE, or is asked for.
    """
    from trimtransfer.repository.keysetup import Plan, init_keys
    from trimtransfer.repository.signer import Keys

    for role in ("root", "targets"):
        if counts[f"{role}_threshold"] > counts[f"{role}_keys"]:
            raise click.UsageError(f"--{role}-threshold is above --{role}-keys")
    for place in filter(None, (offline, folder)):
        if place.absolute().is_relative_to(Path(repository).absolute()):
            raise click.UsageError(f"{place} lies in the repository: a web server would serve the keys")
    plan = Plan(
        {role: (counts[f"{role}_keys"], counts[f"{role}_threshold"]) for role in ("root", "targets")},
        {"timestamp": timestamp_days},
        protect_publisher,
    )
    where = Keys((folder,) if folder else (), ask_passphrase)
    report = init_keys(
        repository, keys=where, offline=offline, plan=plan, passphrase=None if no_passphrase else new_passphrase
    )
    _tell(output, report, f"Give clients {report.root} by another way than this server; they name it with --root once")


@keys.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@keys_option
@output_options
def show(output: Output, /, repository: str, **options: Any) -> None:
    """Show the roles of REPO: number, until when they are signed, their keys, which of these are here, and drafts."""
    from trimtransfer.repository.keyreport import describe_keys

    _tell(output, describe_keys(repository, take_keys(options)))


@keys.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, callback=name_of("image"))
@offline_option
@keys_option
@output_options
def delegate(output: Output, /, repository: str, images: tuple[str, ...], offline: Path | None, **options: Any) -> None:
    """Let the publisher's key sign these images, too. Needs the targets key."""
    from trimtransfer.repository.keychange import delegate as run

    _tell(output, run(repository, images, keys=take_keys(options), offline=offline))


@keys.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.argument("roles", metavar="ROLE...", nargs=-1, required=True, type=_ONE_ROLE)
@offline_option
@keys_option
@passphrase_option
@output_options
def rotate(
    output: Output,
    /,
    repository: str,
    roles: tuple[str, ...],
    offline: Path | None,
    no_passphrase: bool,
    **options: Any,
) -> None:
    """Make new keys for ROLE (root, targets, publisher, snapshot, timestamp); the old ones count no more.

    Needs the root key; for the publisher the targets key. After somebody had the keys of snapshot or timestamp, rotate
    both: whatever numbers he signed, clients then forget them. New root keys need the old ones, once.
    """
    from trimtransfer.repository.keychange import rotate_keys

    word = None if no_passphrase else new_passphrase
    report = rotate_keys(repository, roles, keys=take_keys(options), offline=offline, passphrase=word)
    _tell(output, report, "Old key files are of no use any more")


@keys.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.argument("role", type=_ONE_ROLE)
@click.option("--public", multiple=True, metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A key of somebody else: its file, or its public half.")  # fmt: skip
@click.option("--make", type=click.IntRange(0, 16), default=0, help="Make so many new ones.")
@click.option("--threshold", type=click.IntRange(1, 16), help="How many keys of the role must sign.")
@offline_option
@keys_option
@passphrase_option
@output_options
def add(
    output: Output,
    /,
    repository: str,
    role: str,
    public: tuple[Path, ...],
    make: int,
    threshold: int | None,
    offline: Path | None,
    no_passphrase: bool,
    **options: Any,
) -> None:
    """Add keys to ROLE, or set how many of them must sign (--threshold alone)."""
    from trimtransfer.repository.keychange import change_keys
    from trimtransfer.trust.ring import read_public

    if not (public or make or threshold):
        raise click.UsageError("name what to add: --public FILE or --make N; or --threshold N")
    report = change_keys(
        repository, role, keys=take_keys(options), offline=offline, add=[read_public(one) for one in public],
        make=make, threshold=threshold, passphrase=None if no_passphrase else new_passphrase,
    )  # fmt: skip
    _tell(output, report)


@keys.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.argument("role", type=_ONE_ROLE)
@click.argument("keyids", metavar="KEYID...", nargs=-1, required=True)
@click.option("--threshold", type=click.IntRange(1, 16), help="How many of the others must sign.")
@offline_option
@keys_option
@output_options
def remove(
    output: Output,
    /,
    repository: str,
    role: str,
    keyids: tuple[str, ...],
    threshold: int | None,
    offline: Path | None,
    **options: Any,
) -> None:
    """Take keys away from ROLE, by the beginnings of their ids (`keys show`)."""
    from trimtransfer.repository.keychange import change_keys

    report = change_keys(repository, role, keys=take_keys(options), offline=offline, remove=keyids, threshold=threshold)
    _tell(output, report)


@keys.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.option("--all", "everything", is_flag=True, help="Also what is still valid for long.")
@offline_option
@keys_option
@output_options
def renew(output: Output, /, repository: str, everything: bool, offline: Path | None, **options: Any) -> None:
    """Sign root, targets and images anew that are in the last quarter of the time for which they are signed."""
    from trimtransfer.repository.keychange import renew as run

    _tell(output, run(repository, keys=take_keys(options), offline=offline, everything=everything))


@keys.command()
@click.argument("path", metavar="REPO|FILE", type=click.Path(exists=True))
@click.option("--discard", is_flag=True, help="Drop the drafts of REPO instead.")
@click.option("--yes", is_flag=True, help="Do not ask whether what is to be signed is what was meant.")
@offline_option
@keys_option
@output_options
def sign(output: Output, /, path: str, discard: bool, yes: bool, offline: Path | None, **options: Any) -> None:
    """Sign what waits for more signatures than there were keys at hand.

    A command that needs keys of others leaves a draft, a file. There: `keys sign FILE --offline DIR` adds signatures to
    it. Back in its place, `keys sign REPO` lets it count once there are enough. Look at what you sign: whoever can
    write to REPO could have left a draft there that names his own keys.

    \b
    Examples:
      medv-repo keys sign /media/stick/root.draft.json --offline /media/safe
      medv-repo keys sign /srv/www/images
    """
    from trimtransfer.repository.drafts import discard_drafts, read_draft, read_drafts, sign_file
    from trimtransfer.repository.keychange import apply_drafts
    from trimtransfer.store import DirectoryStore

    where = take_keys(options)
    if Path(path).is_dir():
        if discard:
            count = discard_drafts(DirectoryStore(path))
            output.result({"discarded": count}, f"{count} drafts discarded")
            return
        _approve([draft for _, draft in read_drafts(DirectoryStore(path))], yes)
        _tell(output, apply_drafts(path, keys=where, offline=offline))
        return
    from trimtransfer.trust.ring import Ring, passphrase_from

    folders = [*([offline] if offline else []), *where.directories]
    if not folders:
        raise click.UsageError("name the folder of your keys with --offline")
    _approve([read_draft(Path(path))], yes)
    draft = sign_file(Path(path), Ring(folders, passphrase_from(_passphrases(), ask_passphrase)))
    lacks = max(0, draft.lacks())
    text = (
        f"still lacking: {draft.lacks_text()}" if lacks else "complete: take it back and run `medv-repo keys sign REPO`"
    )
    output.result({"draft": path, "role": draft.role, "lacks": lacks}, f"Signed {path}; {text}")


@click.command()
@click.argument("repository", metavar="REPO", type=_REPOSITORY)
@click.option("--beyond", type=click.IntRange(0, 1 << 30), default=0, metavar="N",
              help="After a restore from a backup: make numbers rise above N, which clients have seen.")  # fmt: skip
@keys_option
@output_options
def timestamp(output: Output, /, repository: str, beyond: int, **options: Any) -> None:
    """Sign anew, for some days, that what is newest in REPO is the newest. Needs the online keys alone.

    Clients refuse a repository whose timestamp has expired: somebody may be withholding what is new. So this runs by a
    timer, each day or hour, as the user that has the keys; the snapshot is signed anew when it is near its end. Of what
    a person must renew (`keys renew`) it warns.

    \b
    Example, /etc/systemd/system/medv-timestamp.service:
      [Service]
      Type=oneshot
      User=publisher
      ExecStart=/usr/local/bin/medv-repo timestamp /srv/www/images
    and medv-timestamp.timer:
      [Timer]
      OnCalendar=daily
      RandomizedDelaySec=1h
      Persistent=true
      [Install]
      WantedBy=timers.target
    """
    from trimtransfer.repository.renewal import renew_timestamp

    _tell(output, renew_timestamp(repository, keys=take_keys(options), beyond=beyond))


def _approve(drafts: list[Draft], yes: bool) -> None:
    """Show what is about to be signed, and ask whether it is what was meant."""
    for line in (line for draft in drafts for line in draft.describe()):
        click.echo(line, err=True)
    if not yes:
        click.confirm("Sign this?", abort=True, err=True)


def _passphrases() -> tuple[tuple[str, str], ...]:
    from trimtransfer.repository.signer import PASSPHRASES

    return PASSPHRASES


def _tell(output: Output, report: KeysReport, remark: str = "") -> None:
    for warning in report.warnings:
        output.warn(warning)
    lines = [f"Repository {report.repository}, root {report.root}"]
    for one in report.roles:
        ids = ", ".join(keyid[:8] for keyid in one.keyids)
        lines.append(
            f"  {one.role:<20} number {one.number:<5} valid until {one.expires}  "
            f"{one.threshold} of {len(one.keyids)} ({ids}), {one.here} here"
        )
    lines += [f"Wrote {path}" for path in report.written]
    for path, lacks in report.drafts:
        lines.append(f"Not in force yet: {path} needs {lacks}; see `medv-repo keys sign --help`")
    output.result(report.to_dict(), "\n".join([*lines, *([remark] if remark else [])]))
