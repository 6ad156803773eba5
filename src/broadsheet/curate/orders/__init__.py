"""Documents in an order of their own: vectors, neighbours, a path over ranks, contexts."""
