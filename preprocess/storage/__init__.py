"""Rows and their statistics on disk, and parallel processing of blocks of rows."""
