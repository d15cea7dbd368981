"""Support of the tests; tests/README.md lists the modules."""
