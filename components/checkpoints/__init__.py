"""Official checkpoint formats: how their config and tensors become ours, and back."""
