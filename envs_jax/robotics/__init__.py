"""Robots: physics-independent parts (momentum, motor limits, gear loads) and the environments made of them."""
