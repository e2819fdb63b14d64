"""Tensor maths: torch only, no ComfyUI, no files. Each file opens with its paper and equations."""
