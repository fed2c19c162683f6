"""Faults injected into the real programs, many times: `make campaign`. Not part of the test-suite."""
