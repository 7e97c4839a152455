"""Labels typed text in a web page or in the terminal (docs/demo.md)."""
