"""Text to tensors: tokenizer, windows, features, the token cache, batches of similar length."""
