"""What makes parts of the documentation: `python -m tools.options`, `tools.python`, `tools.figures`, `tools.equality`."""
