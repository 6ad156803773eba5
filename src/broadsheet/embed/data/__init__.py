"""What embedders are trained on and asked."""
