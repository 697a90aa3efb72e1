"""What people look at: drawings, tables and pictures of results and datasets."""
