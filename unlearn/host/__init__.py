"""The only code that knows ComfyUI: layers, weights, prompts, adapters, progress, pictures."""
