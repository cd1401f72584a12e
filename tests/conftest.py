"""What all tests share: hypothesis settings and random numbers whose seed is printed."""

from __future__ import annotations

import os
import random
import secrets

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from images import ImageSet, Unavailable, image_set

settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("TRIMTRANSFER_HYPOTHESIS", "default"))


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
