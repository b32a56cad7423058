"""Measuring: turns through the whole appliance, the floor its engines set, and the stack to beat."""
