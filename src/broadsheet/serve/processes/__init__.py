"""The processes of a server: where they listen, how they end, and several that answer as one."""
