import pytest


@pytest.fixture
def finds(record_property):
    return lambda cell: record_property("cell", cell)
