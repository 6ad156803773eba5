"""The screens of the daily page: what is read, and what a reader says of it."""
