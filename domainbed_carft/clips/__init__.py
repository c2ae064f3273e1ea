"""CLIP models: located, verified, loaded, and used to encode prompts."""
