"""Mathematics on [pop, ...] tensors: returns, losses, running statistics."""
