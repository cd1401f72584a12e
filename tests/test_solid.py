"""Solid units end to end: who has nothing fetches less, and who has something what it needs; whatever is wrong with
them, the image is right and the plain packs serve."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import subprocess
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from images import make_ext4
from servers import Nginx
from syncing import STARTS, content, leftovers, partition_table, put, write_sparse
from test_deltas import SmallPacks
from test_hostdeltas import MKE2FS, damaged, real_files
from test_must_fail import checker_of  # type: ignore[attr-defined]  # noqa: F401

from trimtransfer.assembly.hostunits import fitting, solid_of
