"""One reader per format, each with `read_split(cfg, which, findings)`, and what readers share."""
