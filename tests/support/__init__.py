"""What the tests share: private servers, a proxy that makes faults, waiting with a limit."""
