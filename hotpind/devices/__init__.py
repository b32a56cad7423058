"""Which devices may talk: their registry, the pairing window, and the appliance's own identity."""
