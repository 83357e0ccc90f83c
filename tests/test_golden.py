"""Golden vectors of the published method (see tests/golden/README.md for keys and tolerances)."""

import importlib
import pkgutil

import golden_checks

for _module in pkgutil.iter_modules(golden_checks.__path__):
    _checks = importlib.import_module(f"golden_checks.{_module.name}")
    globals().update({k: v for k, v in vars(_checks).items() if k.startswith("test_golden")})
