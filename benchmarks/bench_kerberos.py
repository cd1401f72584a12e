"""What a Kerberos ticket adds to a request, at the client and at the server, in CPU milliseconds. Prints JSON.

    python benchmarks/bench_kerberos.py [--requests 500]

Tickets are of a real domain controller of Samba, which this starts (as root): an account in a few groups. The client
makes a token for each request and checks the server's proof in the answer; the server takes the token in, with the
replay cache, and reads account and groups. No HTTP is spoken.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from domain import Domain, missing  # noqa: E402

from medv.gateway.acceptor import Acceptor  # noqa: E402
from medv.gateway.pac import read  # noqa: E402
from trimtransfer.fetch.negotiate import Negotiator  # noqa: E402


def measure(domain: Domain, requests: int) -> dict[str, float]:
    """Return milliseconds for each request by what was done."""
    acceptor, negotiator = Acceptor(domain.keytab("http"), "HTTP"), Negotiator("https://localhost/")
    begun = time.process_time()
    proofs = [negotiator.begin() for _ in range(requests)]
    tokens = [base64.b64decode(proof.header().split()[1]) for proof in proofs]
    made = time.process_time()
    answers = []
    for token in tokens:
        step = acceptor.step(token)
        assert step.client is not None
        assert read(step.client.pac).groups
        answers.append(base64.b64encode(step.answer).decode())
    accepted = time.process_time()
    for proof, answer in zip(proofs, answers, strict=True):
        assert proof.answered(200, {"www-authenticate": f"Negotiate {answer}"})
    checked = time.process_time()
    spent = {"client": made - begun + checked - accepted, "server": accepted - made}
    return {side: round(seconds * 1000 / requests, 3) for side, seconds in spent.items()}


def main() -> None:
    """Start the domain, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    if lacking := missing():
        raise SystemExit(lacking)
    with tempfile.TemporaryDirectory(prefix="bench-kerberos-") as folder, Domain(Path(folder)) as domain:
        os.environ.update(domain.environment, KRB5CCNAME=domain.login("alice"))
        found = measure(domain, options.requests)
    print(json.dumps({"machine": platform.machine(), "cpus": os.cpu_count(), **vars(options), "cpu_ms": found}))


if __name__ == "__main__":
    main()
