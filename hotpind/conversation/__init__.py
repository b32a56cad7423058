"""A turn: listen, transcribe, think, speak; with its history, prompts and pictures."""
