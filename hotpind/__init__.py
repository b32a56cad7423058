"""hotpind, the home appliance behind the Hotpin.

A daemon that serves ESP32-CAM voice pins: it hears with whisper.cpp and speaks with Piper on the device, asks a
cloud model about speech and picture together, and answers from a local model when the internet is gone.
"""

__version__ = "0.1.0"
