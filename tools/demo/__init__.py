"""Labels what someone types, in the terminal or into a page: docs/demo.md."""
