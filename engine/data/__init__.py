"""Text to tensors: tokenizer, features and windows, the token cache, batches of similar length."""
