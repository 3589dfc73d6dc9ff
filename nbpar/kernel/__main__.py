"""`python -m nbpar.kernel -f CONNECTION_FILE`: what a kernelspec of nbpar's starts."""

from nbpar.kernel.app import RanksKernelApp

if __name__ == "__main__":
    RanksKernelApp.launch_instance()
