"""Where papers are kept: an SQLite file, or a PostgreSQL server."""
