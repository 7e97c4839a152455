"""Text to tensors: tokenizers, windows, features, the token cache, batches of similar length."""
