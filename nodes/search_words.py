"""Words by which artists look for the nodes that forget: what they want gone, and their models."""

WANTED = ["nsfw", "nudity", "style", "artist", "delete", "ban"]
FAMILIES = ["sd15", "sdxl", "pony", "flux", "z-image", "qwen image", "wan", "anima"]
