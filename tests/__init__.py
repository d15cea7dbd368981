"""The tests. Directories are tiers, the cheap ones first: unit, property, contract, mount, crash, faults, editors."""
