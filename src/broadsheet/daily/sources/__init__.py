"""What sources send, read into records: one module a family of formats. Nothing here opens a file or a connection."""
