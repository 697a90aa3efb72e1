"""Encoded images: what their headers say, and the one decoder."""
