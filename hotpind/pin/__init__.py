"""A complete wearable in software: talks, listens, finds and pairs like a pin, and checks what it is sent."""
