"""Models under their names: what each can be asked, and the engine that owns it."""
