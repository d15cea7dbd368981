"""The only way anything in Redis is changed: watch, journal, execute."""
