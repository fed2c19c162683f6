"""Collects what the tests of every architecture found; written as a table by `make architectures`."""

import pytest


def capability(name):
    return pytest.mark.capability(name)
