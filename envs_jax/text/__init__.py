"""Environments that speak in tokens or in text."""
