"""What all tests share: hypothesis settings and random numbers whose seed is printed."""

from __future__ import annotations

import os
import random
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from images import ImageSet, Unavailable, image_set
from servers import MISSING_NGINX, Authority, Nginx, has_nginx

for _name in ("no_proxy", "NO_PROXY"):  # the servers of the tests are on this machine, whatever proxy it has
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "localhost", "127.0.0.1")))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job; programs under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("TRIMTRANSFER_HYPOTHESIS", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have long tests: side by side, none is then left alone at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a user keeps of his own repositories and devices is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def seed() -> int:
    """A seed of this run's own, printed so that a failure can be repeated with ``TRIMTRANSFER_SEED``."""
    chosen = int(os.environ.get("TRIMTRANSFER_SEED") or secrets.randbits(32))
    print(f"TRIMTRANSFER_SEED={chosen}")
    return chosen


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A numpy generator with the printed seed."""
    return np.random.default_rng(seed)


@pytest.fixture
def rnd(seed: int) -> random.Random:
    """A standard generator with the printed seed."""
    return random.Random(seed)


@pytest.fixture(scope="session")
def images() -> ImageSet:
    """Real image pairs from distribution packages (the small set), or a skipped test where they cannot be had."""
    try:
        return image_set("small")
    except Unavailable as reason:
        pytest.skip(f"real images: {reason}")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of this run: ``authority.file`` for ``ca_cert=``."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def nginx(tmp_path: Path, authority: Authority) -> Iterator[Nginx]:
    """nginx over TLS, serving ``nginx.root`` (empty, in ``tmp_path``), or a skipped test where there is none."""
    if not has_nginx():
        pytest.skip(MISSING_NGINX)
    root = tmp_path / "served"
    root.mkdir()
    with Nginx(root, tmp_path, authority) as server:
        yield server


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user may pass: pytest's own is for its user alone, so nothing in it is public."""
    with TemporaryDirectory(prefix="trimtransfer-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)
