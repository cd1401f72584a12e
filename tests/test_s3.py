"""Reading from a real S3 server: signatures, what refusals mean, ranges, redirects to signed URLs, medv-sync."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from caches import only_ipv4
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from s3server import MISSING, Harm, HarmfulProxy, S3Server, swift_python, use
from servers import BadServer, Fault, Request
from syncing import make_images, publish_all

from medv.cli import medv_repo, medv_sync
from trimtransfer.bucket.claim import claimed
from trimtransfer.bucket.listing import parse_keys, parse_parts, parse_uploads
from trimtransfer.bucket.pushing import push
from trimtransfer.bucket.store import BucketStore
from trimtransfer.bucket.uploading import send_bytes
from trimtransfer.bucket.wire import Patience, Wire
from trimtransfer.errors import AccessDenied, FetchError, FormatError, NotFound, TargetRefused
from trimtransfer.fetch import s3
from trimtransfer.fetch.account import Account, Address
from trimtransfer.fetch.http import FetchOptions, HttpStore
from trimtransfer.fetch.retry import Cause
from trimtransfer.fetch.sigv4 import AccessKeys, presigned, signed_headers
from trimtransfer.store import DirectoryStore, Range

needs_s3 = pytest.mark.skipif(swift_python() is None, reason=MISSING)
EXAMPLE = AccessKeys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
DAY = datetime(2013, 5, 24, tzinfo=UTC)
HOST = "https://examplebucket.s3.amazonaws.com"
QUICK = FetchOptions(first_delay=0.01, max_delay=0.05, attempts=4, budget=5.0, first_budget=5.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def place(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of its own for each test."""
    use(monkeypatch, server)
    return f"s3://{server.bucket}/{request.node.name.replace('[', '-').rstrip(']').replace('_', '-')}"


class TestSignatures:
    """The examples of the S3 API reference, "Signature Calculations for the Authorization Header" and "Authenticating
    Requests: Using Query Parameters"."""

    @pytest.mark.parametrize(
        ("method", "path", "headers", "payload", "signature"),
        [
            (
                "GET",
                "/test.txt",
                {"range": "bytes=0-9"},
                None,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "PUT",
                "/test%24file.text",
                {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
                "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            ("GET", "/?lifecycle", {}, None, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
            (
                "GET",
                "/?max-keys=2&prefix=J",
                {},
                None,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ],
    )
    def test_headers(
        self, method: str, path: str, headers: dict[str, str], payload: str | None, signature: str
    ) -> None:
        more = {} if payload is None else {"payload": payload}
        lines = signed_headers(EXAMPLE, "us-east-1", method, HOST + path, now=DAY, headers=headers, **more)
        assert lines["Authorization"].endswith(f"Signature={signature}")
        assert lines["x-amz-date"] == "20130524T000000Z"

    def test_url(self) -> None:
        url = presigned(EXAMPLE, "us-east-1", f"{HOST}/test.txt", now=DAY, seconds=86400)
        found = parse_qs(urlsplit(url).query)["X-Amz-Signature"]
        assert found == ["aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"]

    @pytest.mark.parametrize("seconds", [0, -1, 7 * 86_400 + 1])
    def test_times_that_s3_does_not_know(self, seconds: int) -> None:
        with pytest.raises(ValueError, match="7 days"):
            presigned(EXAMPLE, "us-east-1", HOST, now=DAY, seconds=seconds)

    def test_secrets_do_not_show(self) -> None:
        assert "wJal" not in repr(EXAMPLE)


class TestAccount:
    def account(self, tmp_path: Path, *, credentials: str = "", config: str = "", **environment: str) -> Account:
        (tmp_path / "credentials").write_text(credentials)
        (tmp_path / "config").write_text(config)
        files = {
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
        }
        return Account({**files, **environment})

    def test_the_environment(self, tmp_path: Path) -> None:
        account = self.account(
            tmp_path, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_SESSION_TOKEN="c", AWS_REGION="eu-1"
        )
        assert account.keys() == AccessKeys("a", "b", "c")
        assert account.base(Address("images", "x y")) == "https://images.s3.eu-1.amazonaws.com/x%20y"
        assert account.base(Address("with.dots")) == "https://s3.eu-1.amazonaws.com/with.dots"

    def test_profiles(self, tmp_path: Path) -> None:
        text = (
            "[default]\naws_access_key_id=d\naws_secret_access_key=e\n[p]\naws_access_key_id=f\naws_secret_access_key=g"
        )
        config = "[profile p]\nregion=eu-2\nendpoint_url=https://s3.example.org\ns3 =\n  addressing_style = virtual\n"
        first = self.account(tmp_path, credentials=text, config=config)
        assert (first.keys().id, first.region) == ("d", "us-east-1")
        other = self.account(tmp_path, credentials=text, config=config, AWS_PROFILE="p", AWS_ACCESS_KEY_ID="no")
        assert (other.keys().id, other.region) == ("f", "eu-2")
        assert other.base(Address("images", "p")) == "https://images.s3.example.org/p"

    def test_a_process_gives_keys_and_new_ones(self, tmp_path: Path) -> None:
        (tmp_path / "n").write_text("1")
        script = f'n=$(cat {tmp_path}/n); echo {{\\"AccessKeyId\\": \\"k$n\\", \\"SecretAccessKey\\": \\"s\\"}}'
        (tmp_path / "give.sh").write_text(
            script.replace('\\"', '"').replace("echo ", "echo '").replace("$n", "'$n'") + "'"
        )
        account = self.account(tmp_path, config=f"[default]\ncredential_process = sh {tmp_path}/give.sh\n")
        first = account.keys()
        assert first.id == "k1"
        assert not account.renewed(first)
        (tmp_path / "n").write_text("2")
        assert account.renewed(first)
        assert account.keys().id == "k2"

    @pytest.mark.parametrize(
        ("config", "match"),
        [
            ("", "AWS_ACCESS_KEY_ID"),
            ("[default]\ncredential_process = false\n", "run it by hand"),
            ("[default]\ncredential_process = echo {}\n", "run it by hand"),
        ],
    )
    def test_without_keys(self, tmp_path: Path, config: str, match: str) -> None:
        with pytest.raises(AccessDenied, match=match):
            self.account(tmp_path, config=config).keys()

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(AccessDenied, match="cannot be read"):
            self.account(tmp_path, config="no section\n")

    @pytest.mark.parametrize(
        "url", ["s3://", "s3://B/x", "s3://a", "s3://abc/../x", "s3://abc/x//y", "s3://abc/x?y", "http://abc"]
    )
    def test_urls_that_are_none(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"s3://bucket/prefix|empty parts"):
            Address.parse(url)


class TestLists:
    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_nonsense(self, data: bytes) -> None:
        for parse in (lambda: parse_keys(data, "p/"), lambda: parse_parts(data), lambda: parse_uploads(data, "p/")):
            with contextlib.suppress(FormatError):
                parse()

    @pytest.mark.parametrize(
        "text",
        [
            "<Contents><Key>other</Key></Contents>",
            "<Contents><Key>p/a</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>-1</Size></Contents>",
            "<Contents><Key>p/a</Key><LastModified>soon</LastModified><Size>1</Size><ETag>x</ETag></Contents>",
            "<IsTruncated>true</IsTruncated>",
        ],
    )
    def test_lists_that_break_a_rule(self, text: str) -> None:
        with pytest.raises(FormatError):
            parse_keys(f"<ListBucketResult>{text}</ListBucketResult>".encode(), "p/")

    def test_nothing_grows(self) -> None:
        bomb = b'<!DOCTYPE a [<!ENTITY b "ccc">]><a>&b;</a>'
        with pytest.raises(FormatError, match="declarations"):
            parse_keys(bomb, "")


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "body", "cause", "text"),
        [
            (404, "<Error><Code>NoSuchKey</Code></Error>", None, ""),
            (404, "", None, ""),
            (404, "<Error><Code>XAdminUserNotFound</Code></Error>", Cause.REFUSED, "XAdminUserNotFound"),
            (404, "<Error><Code>NoSuchBucket</Code></Error>", Cause.REFUSED, "no such bucket"),
            (403, "", Cause.DENIED, "s3:GetObject"),
            (403, "<Code>InvalidAccessKeyId</Code>", Cause.DENIED, "AWS_ACCESS_KEY_ID"),
            (400, "<Code>AuthorizationHeaderMalformed</Code><Region>eu-1</Region>", Cause.REFUSED, "region, eu-1"),
            (301, "", Cause.REFUSED, "region, eu-2"),
            (503, "<Code>SlowDown</Code>", Cause.BUSY, "fewer requests"),
            (500, "<Code>InternalError</Code>", None, ""),
            (403, "<Code>" + "x" * 100_000, Cause.DENIED, "s3:GetObject"),
        ],
    )
    def test_what_they_mean(self, status: int, body: str, cause: Cause | None, text: str) -> None:
        headers = {"x-amz-bucket-region": "eu-2"} if status == 301 else {}
        failed = s3.refusal(status, headers, body.encode())
        assert (failed.cause if failed else None) == cause
        assert text in str(failed)


@needs_s3
class TestReading:
    def test_objects_ranges_and_lists(self, place: str, rng: np.random.Generator) -> None:
        data = rng.bytes(3_000_000)
        with Wire(place) as wire:
            send_bytes(wire, "packs/aa/a.bin", data, headers={})
            send_bytes(wire, "images/i/head.json", b"{}", headers={})
        store = BucketStore(place)
        assert store.read("images/i/head.json", limit=10) == b"{}"
        assert store.read_range(Range("packs/aa/a.bin", 1000, 2000, len(data))) == data[1000:3000]
        assert list(store.list()) == [("images/i/head.json", 2), ("packs/aa/a.bin", len(data))]
        assert list(store.list("packs")) == [("packs/aa/a.bin", len(data))]
        assert (store.exists("packs/aa/a.bin"), store.exists("packs/aa/b.bin")) == (True, False)
        with pytest.raises(NotFound):
            store.size("packs/aa/b.bin")
        with pytest.raises(FormatError):
            store.read("packs/aa/a.bin", limit=10)
        with pytest.raises(FormatError):
            store.read_range(Range("packs/aa/a.bin", len(data) - 1, 2))
        for change in (lambda: store.put("images/x", b""), lambda: store.delete("images/i/head.json")):
            with pytest.raises(TargetRefused):
                change()
        store.close()

    def test_lists_of_several_pages(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with Wire(place) as wire:
            for number in range(7):
                send_bytes(wire, f"packs/{number}.bin", b"x", headers={})
            real = Wire.ask

            def few(
                self: Wire, method: str, name: str, *, query: list[tuple[str, str]] = (), **options: object
            ) -> object:  # type: ignore[assignment]
                more = [("max-keys", "3")] if any(key == "list-type" for key, _ in query) else []
                return real(self, method, name, query=[*query, *more], **options)  # type: ignore[arg-type]

            monkeypatch.setattr(Wire, "ask", few)
            assert [one.name for one in wire.objects()] == [f"packs/{number}.bin" for number in range(7)]

    @pytest.mark.parametrize(
        ("change", "kind", "match"),
        [
            ({"AWS_SECRET_ACCESS_KEY": "wrong"}, AccessDenied, "AWS_SECRET_ACCESS_KEY"),
            ({"AWS_ACCESS_KEY_ID": "nobody"}, AccessDenied, "SignatureDoesNotMatch|InvalidAccessKeyId"),
            ({"AWS_REGION": "elsewhere"}, FetchError, "region.*us-east-1"),
        ],
    )
    def test_refusals(
        self, place: str, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], kind: type[Exception], match: str
    ) -> None:
        for name, value in change.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(kind, match=match):
            HttpStore(place, options=QUICK).read("x", limit=10)
        with Wire(place) as wire, pytest.raises(kind, match=match):
            wire.ask("GET", "x")

    def test_no_such_bucket(self, place: str) -> None:
        with pytest.raises(FetchError, match="no such bucket"):
            HttpStore("s3://no-such-bucket/x", options=QUICK).read("x", limit=10)

    def test_a_wrong_clock(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        class Late(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return datetime.now(UTC) - timedelta(minutes=20)

        monkeypatch.setattr(s3, "datetime", Late)
        with pytest.raises(AccessDenied, match=r"clock of this machine is wrong.*NTP"):
            HttpStore(place, options=QUICK).read("x", limit=10)

    def test_expired_keys_are_read_anew(
        self, place: str, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with Wire(place) as wire:
            send_bytes(wire, "images/i/head.json", b"{}", headers={})
        old, new = (
            "[default]\naws_access_key_id=old\naws_secret_access_key=x\n",
            "[default]\naws_access_key_id=test:tester\naws_secret_access_key=testing\n",
        )
        (tmp_path / "credentials").write_text(old)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        store = HttpStore(place, options=QUICK)
        with Wire(place) as wire:
            for ask in (
                lambda: store.read("images/i/head.json", limit=9),
                lambda: wire.ask("GET", "images/i/head.json"),
            ):
                with pytest.raises(AccessDenied):
                    ask()
            (tmp_path / "credentials").write_text(new)
            assert store.read("images/i/head.json", limit=9) == b"{}"
            assert wire.ask("GET", "images/i/head.json").body == b"{}"

    def test_busy_and_cut(self, place: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        slow = Harm(status=503, body=b"<Error><Code>SlowDown</Code></Error>")
        with Wire(place) as wire:
            send_bytes(wire, "images/i/head.json", b"{}", headers={})
        with HarmfulProxy(server.port, lambda seen, number: slow if number < 2 else None) as proxy:
            use(monkeypatch, server, proxy.url)
            assert HttpStore(place, options=QUICK).read("images/i/head.json", limit=9) == b"{}"
            assert len(proxy.seen) == 3
        expired = Harm(status=400, body=b"<Error><Code>ExpiredToken</Code></Error>")
        with HarmfulProxy(server.port, lambda seen, number: expired) as proxy:
            use(monkeypatch, server, proxy.url)
            with pytest.raises(AccessDenied, match="temporary keys have expired"):
                HttpStore(place, options=QUICK).read("images/i/head.json", limit=9)

    def test_signed_urls_are_for_one_object(self, place: str) -> None:
        with Wire(place) as wire:
            for name in ("packs/a.bin", "packs/b.bin"):
                send_bytes(wire, name, name.encode(), headers={})
            url = wire.link("packs/a.bin", 60)
        assert httpx.get(url, headers={"Range": "bytes=0-4"}).content == b"packs"
        assert httpx.get(url.replace("a.bin", "b.bin")).status_code == 403
        assert httpx.get(url.replace("/packs/a.bin", "")).status_code == 403
        assert httpx.put(url, content=b"x").status_code == 403
        assert httpx.delete(url).status_code == 403

    def test_redirects_lead_to_the_store_without_credentials(
        self, place: str, server: S3Server, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = rng.bytes(500_000)
        with HarmfulProxy(server.port) as store_itself:
            use(monkeypatch, server, store_itself.url)
            with Wire(place) as wire:
                send_bytes(wire, "packs/a.bin", data, headers={})
                store_itself.seen.clear()

                def lead(request: Request, turn: int) -> Fault:
                    return Fault(status=307, headers={"Location": wire.link(request.target[1:], 60)}, body=b"")

                with BadServer({}, lead) as gateway:
                    store = HttpStore(gateway.url.replace("http://", "http://user:secret@"), options=QUICK)
                    wanted = [Range("packs/a.bin", start, 1000, len(data)) for start in (5, 100_000, 499_000)]
                    got: dict[int, bytes] = {}
                    store.fetch(wanted, lambda part, view: got.update({part.start: bytes(view)}))
            assert got == {part.start: data[part.start : part.end] for part in wanted}
            assert all(request.get("authorization") for request in gateway.requests)
            assert store_itself.seen
            assert not any("authorization" in seen.headers for seen in store_itself.seen)


@needs_s3
class TestCommands:
    def test_sync_and_look(
        self, place: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            monkeypatch.setenv(name, str(tmp_path / name))
        images = make_images(rng)
        publish_all(tmp_path / "repository", images)
        with Wire(place) as wire, claimed(wire, "test") as claim:
            push(wire, claim, DirectoryStore(tmp_path / "repository"))
        runner, output = CliRunner(), tmp_path / "disk.img"
        for version, data in enumerate(images, 1):
            run = runner.invoke(medv_sync, [place, "disk", "--version", str(version), "-o", str(output), "--json"])
            assert run.exit_code == 0, run.output
            assert output.read_bytes() == data
        listed = runner.invoke(medv_repo, ["ls", place, "--json"])
        assert [one["version"] for one in json.loads(listed.stdout)["images"][0]["versions"]] == ["1", "2"]
        shown = runner.invoke(medv_repo, ["show", place, "disk", "--json"])
        assert json.loads(shown.stdout)["version"] == "2"
        checked = runner.invoke(medv_repo, ["verify", place, "--json"])
        assert (checked.exit_code, json.loads(checked.stdout)["damage"]) == (0, [])
        only_ipv4(monkeypatch)
        examined = runner.invoke(medv_repo, ["doctor", place, "disk", "--json"])
        report = json.loads(examined.stdout)
        assert (examined.exit_code, report["facts"]["version"]) == (0, "2"), examined.output
        with Wire(place) as wire:
            pack = max((one for one in wire.objects("packs/")), key=lambda one: one.length)
            data = bytearray(wire.ask("GET", pack.name).body)
            data[len(data) // 2] ^= 1
            wire.ask("PUT", pack.name, body=bytes(data))
        damaged = runner.invoke(medv_repo, ["verify", place, "--json"])
        assert damaged.exit_code == 6
        assert pack.name in damaged.stdout

    @pytest.mark.parametrize("url", ["s3://", "s3://x/y?z"])
    def test_wrong_urls(self, url: str) -> None:
        for command in ([medv_sync, url, "disk"], [medv_repo, "push", "/", url], [medv_repo, "gc", url]):
            run = CliRunner().invoke(command[0], command[1:])  # type: ignore[arg-type, index]
            assert run.exit_code == 2, run.output

    def test_timeouts_are_told(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patience = Patience(attempts=2, first_delay=0.01)
        with Wire(place, patience=patience) as wire, pytest.raises(FetchError, match="2 attempts"):
            wire.ask("GET", "x")
