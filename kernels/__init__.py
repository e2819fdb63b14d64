"""Pure tensor maths: torch only, no ComfyUI, no files, no globals. Each file opens with the paper and the equations it implements."""
