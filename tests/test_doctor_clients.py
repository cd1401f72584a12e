"""The doctor's verdicts and real clients: where it warns, they sync; where it calls something an error, they do not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from syncing import make_images, publish_all
from test_doctor_servers import ERROR, ONE_FAULT, Change, objects_in, serving

from medv.doctor.finding import Severity
from trimtransfer.errors import TrimTransferError
from trimtransfer.fetch import mirrored
from trimtransfer.fetch.retry import FetchOptions

SYNC = importlib.import_module("trimtransfer.assembly.sync")
PATIENCE = FetchOptions(connect=3, stall=2, first_delay=0.01, max_delay=0.02, budget=5, first_budget=5, attempts=3)
LATER = {"clock-skew", "head-cached", "head-stale"}
"""What does not break this sync: a new version is seen late, or something signed is refused."""


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return make_images(np.random.default_rng(5))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Path:
    root = tmp_path_factory.mktemp("clients") / "repository"
    publish_all(root, images, small_packs=False)
    return root


@pytest.mark.parametrize(
    ("code", "severity", "change"), ONE_FAULT, ids=[f"{n}-{code}" for n, (code, *_) in enumerate(ONE_FAULT)]
)
def test_verdicts(
    repository: Path,
    images: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    severity: Severity,
    change: Change,
) -> None:
    def open_quickly(url: str, **options: Any) -> Any:
        return mirrored.open_servers(url, options=PATIENCE, **options)

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(SYNC, "open_store", open_quickly)
    output = tmp_path / "disk.img"
    failure = None
    with serving(objects_in(repository), change) as server:
        try:
            for version in ("1", None):  # a first download, and an update, which asks for ranges
                SYNC.sync(server.url, "disk", version=version, output=output, cache=tmp_path / "cache")
        except TrimTransferError as error:
            failure = error
    if failure is None:
        assert output.read_bytes() == images[1]
    if code not in LATER:
        assert (failure is not None) == (severity is ERROR), failure
