"""What makes parts of the documentation: `python -m tools.options`, `tools.figures`, `tools.equality`."""
