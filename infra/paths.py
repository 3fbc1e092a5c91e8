"""Where Headwater keeps what it fetches (cache, can be made again) and what it owns (data); an environment variable moves each."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Downloads and converted models; HEADWATER_CACHE moves it. Deleting it costs a download, nothing else."""
    return Path(os.environ.get("HEADWATER_CACHE") or platformdirs.user_cache_dir("headwater", appauthor=False))


def data_dir() -> Path:
    """Brokers' data and sites' own files; HEADWATER_DATA moves it."""
    return Path(os.environ.get("HEADWATER_DATA") or platformdirs.user_data_dir("headwater", appauthor=False))
