"""Tests of the whole appliance with real engines, real models and real speech."""
