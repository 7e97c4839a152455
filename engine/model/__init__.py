"""What models are built of: encoders, LoRA, pooling, the base of heads, the CRF, spans."""
