"""Lets a test say what it found, for the table in docs/architectures.md."""

import pytest


@pytest.fixture
def finds(request, record_property):
    """Write the cell of this test's architecture and capability."""
    mark = request.node.get_closest_marker("capability")
    record_property("capability", mark.args[0])
    record_property("architecture", request.node.callspec.params["architecture"])
    return lambda cell: record_property("cell", cell)
