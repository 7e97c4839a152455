"""Components of models: encoders, LoRA, pooling, the base class of heads, the CRF, spans."""
