"""HTTP: who may ask, pairing, the administrator's API, the encrypted port and the server's limits."""
