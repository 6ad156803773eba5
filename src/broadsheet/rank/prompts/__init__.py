"""The listwise prompt: how passages are shown, and how an order is read back."""
