"""The daily page: papers that were listed, on this machine; to read, search, follow, and try."""
