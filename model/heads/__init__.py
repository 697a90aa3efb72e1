"""Head families, one file each."""
