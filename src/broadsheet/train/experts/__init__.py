"""Layers of experts in models of transformers: their routers, what tokens choose, and where weights go."""
