"""CLIP models: found, checked, loaded, their prompts encoded, and the pictures that they want."""
