"""Rows and their statistics on the disk, and blocks of rows handled by several processes."""
