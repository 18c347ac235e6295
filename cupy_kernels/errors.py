"""What this package raises: one line that says what is wrong with which argument, and what is wanted."""


class KernelError(ValueError):
    """A kernel cannot run as asked: a wrong argument, or no device for it."""
