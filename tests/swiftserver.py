"""Runs OpenStack Swift with its S3 interface in one process: ``python swiftserver.py DIRECTORY PORT``.

All four servers of Swift (proxy, account, container, object) and rings of one device; keys are those of ``s3server``.
Prints "ready" once it listens. Not imported by tests: Swift lives in a Python of its own.
"""

import os
import sys

import eventlet

eventlet.monkey_patch()

from pathlib import Path  # noqa: E402

from swift.common import utils, wsgi  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402

USER, SECRET = "test:tester", "testing"
_PIPELINE = "catch_errors gatekeeper listing_formats s3api tempauth slo dlo versioned_writes proxy-logging proxy-server"
_PROXY = f"""
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {SECRET} .admin
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
check_bucket_owner = false
allow_multipart_uploads = true
min_segment_size = 1048576
location = us-east-1
auth_pipeline_check = false
[filter:proxy-logging]
use = egg:swift#proxy_logging
""" + "".join(
    f"[filter:{name}]\nuse = egg:swift#{name}\n"
    for name in ("catch_errors", "gatekeeper", "listing_formats", "slo", "dlo", "versioned_writes")
)


def main() -> None:
    """Set it up, and serve until killed."""
    work, port = Path(sys.argv[1]), int(sys.argv[2])
    (work / "node/d1").mkdir(parents=True, exist_ok=True)
    conf = work / "swift.conf"
    salts = "[swift-hash]\nswift_hash_path_suffix = x\nswift_hash_path_prefix = y\n"
    conf.write_text(f"{salts}[storage-policy:0]\nname = one\ndefault = yes\n")
    utils.SWIFT_CONF_FILE = str(conf)
    from swift.common import storage_policy
    from swift.common.utils import config

    for module in (utils, config, storage_policy, wsgi):
        if hasattr(module, "SWIFT_CONF_FILE"):
            module.SWIFT_CONF_FILE = str(conf)
    utils.validate_configuration()
    storage_policy.reload_storage_policies()
    listeners = {kind: eventlet.listen(("127.0.0.1", 0)) for kind in ("account", "container", "object")}
    for kind, listener in listeners.items():
        ring = work / f"{kind}.ring.gz"
        if ring.exists():
            ring.unlink()
        builder = RingBuilder(4, 1, 0)
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1, "ip": "127.0.0.1",
                         "port": listener.getsockname()[1], "device": "d1", "meta": "",
                         "replication_ip": "127.0.0.1", "replication_port": listener.getsockname()[1]})  # fmt: skip
        builder.rebalance()
        builder.get_ring().save(str(ring))
    default = (
        f"[DEFAULT]\nswift_dir = {work}\ndevices = {work}/node\nmount_check = false\nlog_address = /dev/null\n"
        f"fallocate_reserve = 0\ndisable_fallocate = true\nuser = root\nworkers = 0\n"
    )
    for kind, listener in listeners.items():
        (work / f"{kind}.conf").write_text(
            f"{default}[pipeline:main]\npipeline = app\n[app:app]\nuse = egg:swift#{kind}\n"
        )
        serve(work / f"{kind}.conf", listener)
    (work / "proxy.conf").write_text(f"{default}[pipeline:main]\npipeline = {_PIPELINE}\n{_PROXY}")
    listener = eventlet.listen(("127.0.0.1", port), backlog=128)
    print("ready", flush=True)
    serve(work / "proxy.conf", listener).wait()


def serve(conf: Path, listener: object) -> object:
    """Serve the application of a configuration in a green thread."""
    app = wsgi.loadapp(str(conf))
    log = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    return eventlet.spawn(eventlet.wsgi.server, listener, app, log, log_output=False, debug=False, max_size=256,
                          protocol=wsgi.SwiftHttpProtocol, url_length_limit=16384)  # fmt: skip


if __name__ == "__main__":
    main()
