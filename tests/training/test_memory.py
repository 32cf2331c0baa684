import os
import sys
from types import SimpleNamespace

import pytest

from deeplearning_tutorial.training import memory
from deeplearning_tutorial.training.memory import retain_freed_memory


@pytest.fixture
def settings(monkeypatch):
    """What mallopt is called with, on a Linux whose malloc the environment says nothing about."""
    calls = []
    libc = SimpleNamespace(mallopt=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    return calls


def test_nothing_is_mapped_alone_and_a_gibibyte_is_retained(settings):
    retain_freed_memory()
    # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h.
    assert settings == [(-4, 0), (-1, 2**30)]


def test_the_users_environment_has_the_last_word(settings, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    retain_freed_memory()
    assert settings == []


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(settings, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    retain_freed_memory()
    assert settings == []


def test_a_libc_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    monkeypatch.setattr(sys, "platform", "linux")
    retain_freed_memory()
