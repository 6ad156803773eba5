"""Papers tried from a browser or by an agent: what may be tried, jobs that run it, screens that show it."""
