"""Layers between a backbone and a head that make maps of several strides."""
