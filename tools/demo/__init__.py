"""Labels typed text, in the terminal or in a web page: docs/demo.md."""
