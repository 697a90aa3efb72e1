"""What wires a run: nothing but entry points imports it."""
