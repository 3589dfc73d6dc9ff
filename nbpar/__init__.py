"""nbpar: run an unchanged PyTorch notebook cell over MPI ranks or GPUs."""

__version__ = "0.1.0"
