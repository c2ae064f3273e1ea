"""CLIP models: found, checked, loaded, their prompts encoded, and the images that they want."""
