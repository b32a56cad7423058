"""The device's side: the wire protocol, the WebSocket session, picture intake and pacing."""
