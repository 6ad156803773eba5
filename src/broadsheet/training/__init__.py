"""Training: parts around Hugging Face's `Trainer` and its subclasses that stages share.

Knows: time budgets, checkpoints that survive a kill, the folder a training works in, trainable weights. Does not know:
losses, data, what the trained model is for.
"""
