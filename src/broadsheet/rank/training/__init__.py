"""How rerankers are trained: rows of lists, losses over their scores, the objective, `fit`."""
