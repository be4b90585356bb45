"""Cyber-defence environments."""
