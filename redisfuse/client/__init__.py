"""The only room that imports redis: addresses, connections, the allow-lists, error replies, what a server can do."""
