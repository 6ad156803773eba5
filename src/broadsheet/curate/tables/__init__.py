"""Parts of a prompt over tables: records as text, messages, batches, what is read out of answers, and scores."""
