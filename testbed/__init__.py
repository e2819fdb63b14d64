"""What tests and benchmarks share: small worlds, their models, and a running ComfyUI."""
