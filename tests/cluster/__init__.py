"""Tests on real clusters of redis-server and Valkey."""
