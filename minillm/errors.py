"""The one exception for what a user can mend: a file, a name or an option that is not right."""


class UserError(ValueError):
    """One sentence that names the file, tensor or argument, what was found, what was expected, what to do.

    The command line prints it alone and exits with 2; from Python it is a ValueError.
    """
