"""Does what the project promises hold on this machine? See __main__.py."""
