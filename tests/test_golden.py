"""Golden vectors of the published method (see tests/golden/README.md for keys and tolerances)."""

import importlib
import pkgutil

import pytest

import golden_checks

for _module in pkgutil.iter_modules(golden_checks.__path__):
    pytest.register_assert_rewrite(f"golden_checks.{_module.name}")
    _checks = importlib.import_module(f"golden_checks.{_module.name}")
    globals().update({k: v for k, v in vars(_checks).items() if k.startswith("test_golden")})
